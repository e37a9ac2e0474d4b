// Writer of one .safetensors file, streaming: the tensors are announced first, their data follows
// in pieces of any size, so memory stays bounded however large the file is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/core/types.h"

namespace ferry {

struct TensorHeader {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  std::string_view codes = {};  ///< in place of dtype: elements of a byte, as "F8_E4M3", "I8", "U8"

  std::uint64_t bytes() const;
};

/// Writes to the path as it stands; rename it afterwards where readers must never see half a file.
class SafetensorsWriter {
 public:
  /// Creates the file (an existing one is an error) and writes its header; the data starts at a
  /// multiple of 64 bytes. Throws Error naming the file and the system's reason, as all methods do.
  SafetensorsWriter(const std::filesystem::path& path, std::span<const TensorHeader> tensors);
  /// Closes without checking; what lacks data is left behind broken.
  ~SafetensorsWriter();
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;

  /// The next bytes of data, in the order the tensors were announced.
  void write(std::span<const std::byte> bytes);

  /// Puts everything on disk. Throws BrokenContract when data is missing.
  void close();

 private:
  void put(const void* data, std::size_t bytes);

  std::string path_;
  int fd_ = -1;
  std::uint64_t missing_ = 0;  // bytes of data that are still to come
};

}  // namespace ferry
