// A file mapped read-only.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <utility>

namespace ferry {

/// Owns the mapping; movable. The bytes stay valid while it lives. A file that another program
/// shortens meanwhile is out of scope (the kernel answers with SIGBUS).
class MappedFile {
 public:
  /// Throws ModelError when the file is missing, no regular file, or cannot be mapped.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();

  MappedFile(MappedFile&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}

  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<const std::byte> bytes_;
};

/// Hints for a part of a mapping: it will be read soon, from front to back (starts the read-ahead);
/// or it is not needed any more (its pages leave this process, so that loading a model does not
/// hold file and packed weights at once). Never change what the bytes are.
void advise_read_soon(std::span<const std::byte> part) noexcept;
void advise_read_done(std::span<const std::byte> part) noexcept;

}  // namespace ferry
