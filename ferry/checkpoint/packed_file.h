// A file of weights as they lie in memory: matrices as panels, merged and interleaved as kernels
// read them, so that opening a model copies or maps them and packs nothing. `ferry pack` writes it;
// docs/checkpoints.md, "Packed", has the format.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ferry/checkpoint/mapped_file.h"
#include "ferry/core/types.h"
#include "ferry/kernels/packed_matrix.h"

namespace ferry {

inline constexpr std::uint32_t kPackedVersion = 1;
inline constexpr std::string_view kPackedFile = "model.packed";

enum class PackedForm : std::uint8_t {
  plain,   ///< a tensor's elements, row after row
  matrix,  ///< one or more matrices side by side, as panels
  block,   ///< a gated block: gate's and up's panels in turn, down's, then biases as f32
};

/// What one range of the file holds. `data` is borrowed from the file.
struct PackedPiece {
  PackedForm form = PackedForm::plain;
  /// The tensors that it was made of: one; one or more; gate, up and down.
  std::vector<std::string> names;
  /// The tensor's; the rows of each, which are columns here, then k; inter, hidden.
  std::vector<std::int64_t> shape;
  DType dtype = DType::f32;                ///< of plain elements
  WeightType type = WeightType::f32;       ///< of panels; of a block's gate and up
  WeightType down_type = WeightType::f32;  ///< of a block's down
  bool biased = false;                     ///< a block
  std::uint64_t at = 0;                    ///< in the file, a multiple of 64
  std::uint64_t hash = 0;                  ///< hash_bytes() up to whole lines of 64
  std::span<const std::byte> data = {};

  /// What the above says. REQUIRES: dimensions from 1 to 2^22, or of a plain piece whatever gives
  /// no more than 2^60.
  std::uint64_t bytes() const;

  /// Bytes of a block's first part.
  std::uint64_t gate_up_bytes() const;

  /// Of all the matrices of a piece of such.
  std::int64_t columns() const;
};

/// How all of it was held when it was written: WeightChoice (ferry/model/weights.h).
struct PackedChoice {
  std::string asked;  ///< --weights; empty: as the checkpoint had them
  WeightType type = WeightType::f32;
  bool plain_stays = false;
  bool as_stored = false;
  bool int8_rows = false;
};

/// Threads: const and safe for several once constructed.
class PackedFile {
 public:
  /// Maps the file and checks its head and header: version, layout of panels, their checksums, and
  /// that every piece lies in the file with as many bytes as its shape says. The pieces' own
  /// checksums are left to verify(). Throws ModelError with the file, what was expected and what
  /// was found.
  explicit PackedFile(const std::filesystem::path& path);

  const std::string& path() const { return path_; }

  std::size_t file_bytes() const { return file_.bytes().size(); }

  const PackedChoice& choice() const { return choice_; }

  std::span<const PackedPiece> pieces() const { return pieces_; }

  /// The piece of this form of which `name` is the first tensor; null where there is none.
  const PackedPiece* find(PackedForm form, std::string_view name) const;

  /// Reads all of it. Throws ModelError naming the first piece that has other bytes than were
  /// written.
  void verify() const;

 private:
  void read_header(std::span<const std::byte> header);

  std::string path_;
  MappedFile file_;
  PackedChoice choice_;
  std::vector<PackedPiece> pieces_;
  std::map<std::pair<PackedForm, std::string_view>, std::size_t> by_name_;  // borrow from pieces_
};

/// Writes such a file piece by piece; the header follows behind them.
class PackedFileWriter {
 public:
  /// Creates the file (an existing one is an error). Throws Error naming the file and the system's
  /// reason, as all methods do.
  PackedFileWriter(const std::filesystem::path& path, PackedChoice choice);
  /// Closes without checking; what was not close()d is left behind broken.
  ~PackedFileWriter();
  PackedFileWriter(const PackedFileWriter&) = delete;
  PackedFileWriter& operator=(const PackedFileWriter&) = delete;

  /// Adds a piece with this data. REQUIRES: as many bytes as it says.
  void add(PackedPiece piece, std::span<const std::byte> data);

  /// Writes header and head.
  void close();

 private:
  void put(std::span<const std::byte> bytes);

  std::string path_;
  PackedChoice choice_;
  int fd_ = -1;
  std::uint64_t at_ = 0;
  std::vector<PackedPiece> pieces_;
};

}  // namespace ferry
