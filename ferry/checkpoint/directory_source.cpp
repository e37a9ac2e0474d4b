#include "ferry/checkpoint/directory_source.h"

#include "ferry/checkpoint/json_file.h"

namespace ferry {

namespace fs = std::filesystem;

std::optional<SourceText> directory_text(const fs::path& directory, const std::string& name) {
  const fs::path path = directory / name;
  std::error_code code;
  if (!fs::exists(path, code)) return std::nullopt;
  return SourceText{path.string(), read_text_file(path)};
}

DirectorySource::DirectorySource(const fs::path& directory)
    : path_(directory.string()),
      config_{(directory / kConfig).string(), read_text_file(directory / kConfig)} {}

std::optional<SourceText> DirectorySource::text(const std::string& name) const {
  return name == kConfig ? config_ : directory_text(path_, name);
}

const SourceTensor* DirectorySource::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

void DirectorySource::index_tensors() {
  for (std::size_t i = 0; i < tensors_.size(); ++i) by_name_.emplace(tensors_[i].name, i);
}

}  // namespace ferry
