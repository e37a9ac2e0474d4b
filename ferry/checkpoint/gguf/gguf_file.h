// One GGUF file: its metadata and the tensors in it, checked before anything is promised.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "ferry/checkpoint/gguf/gguf_types.h"
#include "ferry/checkpoint/mapped_file.h"

namespace ferry {

/// A value of the metadata. Texts borrow from the file. Lists of flags are lists of integers.
using GgufValue = std::variant<std::int64_t,
                               double,
                               bool,
                               std::string_view,
                               std::vector<std::int64_t>,
                               std::vector<double>,
                               std::vector<std::string_view>>;

/// A number as whoever wrote it meant it: 0.707, not the f32 next to it.
double gguf_meant(float number);

/// Owns the mapping; everything else borrows from it. Opening reads the header only. Threads: const
/// and safe for several.
class GgufFile {
 public:
  struct Tensor {
    std::string name;
    const GgufType* type = nullptr;   ///< one that is supported
    std::vector<std::int64_t> shape;  ///< rows first, unlike in the file; one to four dimensions
    std::span<const std::byte> data;
  };

  /// Throws ModelError naming file, key or tensor, what was expected and what was found: also for
  /// tensors that reach outside the file, overlap or are not aligned, and types that are not
  /// supported.
  explicit GgufFile(const std::filesystem::path& path);

  const std::string& path() const { return path_; }

  std::uint64_t file_bytes() const { return file_.bytes().size(); }

  std::span<const Tensor> tensors() const { return tensors_; }

  /// Null when there is none.
  const GgufValue* find(std::string_view key) const;

  /// What lists the metadata: in the order of their keys.
  const std::map<std::string, GgufValue, std::less<>>& metadata() const { return metadata_; }

 private:
  std::string path_;
  MappedFile file_;
  std::map<std::string, GgufValue, std::less<>> metadata_;
  std::vector<Tensor> tensors_;
};

}  // namespace ferry
