// A directory of files that appears whole or not at all: where checkpoints are written.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace ferry {

/// The files of a checkpoint under names of their own until all are written; removes what it made
/// when that does not come to pass.
class NewDirectory {
 public:
  /// Throws ConfigError when there are files already.
  explicit NewDirectory(const std::filesystem::path& path);
  ~NewDirectory();
  NewDirectory(const NewDirectory&) = delete;
  NewDirectory& operator=(const NewDirectory&) = delete;

  /// Better now than after minutes of writing. Throws Error.
  void require_space(std::uint64_t bytes) const;

  /// Where to write the file that will be called `name`.
  std::filesystem::path add(const std::string& name);

  /// Throws Error when it cannot be written.
  void add_text(const std::string& name, const std::string& text);

  /// Gives all files their names, in the order they were added.
  void finish();

 private:
  std::filesystem::path partial(const std::string& name) const;

  std::filesystem::path path_;
  bool made_ = false;
  bool done_ = false;
  std::vector<std::string> names_;
};

}  // namespace ferry
