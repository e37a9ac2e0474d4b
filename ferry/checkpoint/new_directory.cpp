#include "ferry/checkpoint/new_directory.h"

#include <fstream>
#include <system_error>

#include "ferry/core/error.h"

namespace ferry {

namespace fs = std::filesystem;

NewDirectory::NewDirectory(const fs::path& path) : path_(path) {
  std::error_code code;
  if (fs::exists(path, code) && !fs::is_empty(path, code)) {
    fail<ConfigError>("{}: expected a new or empty directory, found one with files", path.string());
  }
  made_ = fs::create_directories(path, code);
  if (!fs::is_directory(path)) {
    fail<ConfigError>("{}: cannot be made: {}", path.string(), code.message());
  }
}

NewDirectory::~NewDirectory() {
  std::error_code code;
  if (done_) return;
  for (const std::string& name : names_) {
    fs::remove(partial(name), code);
    fs::remove(path_ / name, code);
  }
  if (made_) fs::remove(path_, code);
}

void NewDirectory::require_space(std::uint64_t bytes) const {
  std::error_code code;
  const fs::space_info space = fs::space(path_, code);
  if (!code && space.available < bytes) {
    fail<Error>(
        "{}: expected {} bytes of free space, found {}", path_.string(), bytes, space.available);
  }
}

fs::path NewDirectory::add(const std::string& name) {
  names_.push_back(name);
  return partial(name);
}

void NewDirectory::add_text(const std::string& name, const std::string& text) {
  const fs::path path = add(name);
  std::ofstream out(path, std::ios::binary);
  out << text << '\n';
  out.close();
  if (!out) fail<Error>("{}: cannot be written", path.string());
}

void NewDirectory::finish() {
  for (const std::string& name : names_) fs::rename(partial(name), path_ / name);
  done_ = true;
}

fs::path NewDirectory::partial(const std::string& name) const {
  return path_ / (name + ".partial");
}

}  // namespace ferry
