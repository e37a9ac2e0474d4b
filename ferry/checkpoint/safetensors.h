// Reader of one .safetensors file: 8 bytes little-endian header length, a JSON header that names
// every tensor, the data. The header is believed only after it has been checked against the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "ferry/checkpoint/mapped_file.h"
#include "ferry/checkpoint/tensor_view.h"
#include "ferry/core/types.h"

namespace ferry {

/// Threads: const and safe for several once constructed.
class SafetensorsFile {
 public:
  /// One tensor as the header describes it.
  struct Entry {
    std::string name;
    std::string dtype_name;      ///< as written: "BF16"
    std::optional<DType> dtype;  ///< absent for types that are listed but cannot be loaded
    std::vector<std::int64_t> shape;
    std::size_t offset = 0;  ///< from the start of the file
    std::size_t bytes = 0;
  };

  /// Maps the file and checks its header: ranges lie in the data, follow one another without gap or
  /// overlap, and agree with shape and type. Throws ModelError with the file, what was expected and
  /// what was found.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::string& path() const { return path_; }

  std::size_t file_bytes() const { return file_.bytes().size(); }

  /// In the order of their data.
  const std::vector<Entry>& entries() const { return entries_; }

  /// Null when there is none.
  const Entry* find(std::string_view name) const;

  /// The bytes of any tensor. REQUIRES: entry is one of entries().
  std::span<const std::byte> data(const Entry& entry) const {
    return file_.bytes().subspan(entry.offset, entry.bytes);
  }

  /// Throws ModelError for an element type that cannot be loaded.
  /// REQUIRES: entry is one of entries().
  TensorView view(const Entry& entry) const;

 private:
  void read_header();
  void check_ranges(std::size_t data_begin) const;

  std::string path_;
  MappedFile file_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string_view, std::size_t> by_name_;  // keys borrow from entries_
};

}  // namespace ferry
