#include "ferry/checkpoint/safetensors_directory.h"

#include <map>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/directory_source.h"
#include "ferry/checkpoint/json_file.h"
#include "ferry/checkpoint/safetensors.h"
#include "ferry/core/error.h"

namespace ferry {

namespace fs = std::filesystem;
using nlohmann::json;

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

/// tensor -> shard file of an index. File names must stay inside the directory.
std::map<std::string, std::string> read_weight_map(const fs::path& index) {
  const std::string file = index.string();
  const json root = parse_json(read_text_file(index), file);
  const auto it = root.is_object() ? root.find("weight_map") : root.end();
  if (it == root.end() || !it->is_object()) {
    fail<ModelError>("{}: expected an object weight_map, found none", file);
  }
  std::map<std::string, std::string> result;
  for (const auto& [tensor, shard] : it->items()) {
    const std::string name = shard.is_string() ? shard.get<std::string>() : "";
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos) {
      fail<ModelError>("{}: tensor {}: expected the name of a file beside the index, found {}",
                       file,
                       tensor,
                       describe(shard));
    }
    result.emplace(tensor, name);
  }
  return result;
}

class SafetensorsDirectory final : public DirectorySource {
 public:
  explicit SafetensorsDirectory(const fs::path& directory) : DirectorySource(directory) {
    std::error_code code;
    if (fs::exists(directory / kIndexFile, code)) {
      open_shards(directory / kIndexFile);
      return;
    }
    if (!fs::exists(directory / kSingleFile, code))
      fail<ModelError>("{}: expected {} or {}, found neither", path_, kSingleFile, kIndexFile);
    mapped_.emplace_back(directory / kSingleFile);
    list_tensors();
    index_tensors();
  }

 private:
  void open_shards(const fs::path& index) {
    const auto weight_map = read_weight_map(index);
    std::map<std::string, std::size_t> shards;
    for (const auto& [tensor, shard] : weight_map) shards.emplace(shard, 0);
    for (auto& [shard, at] : shards) {
      at = mapped_.size();
      mapped_.emplace_back(index.parent_path() / shard);
    }
    list_tensors();
    // A shard may hold a tensor that the index says is in another: the index is believed.
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      const auto it = weight_map.find(tensors_[i].name);
      if (it != weight_map.end() && shards.at(it->second) == tensors_[i].file)
        by_name_.emplace(tensors_[i].name, i);
    }
    for (const auto& [tensor, shard] : weight_map) {
      if (find(tensor) != nullptr) continue;
      fail<ModelError>("{}: expected tensor {} in {}, found none there",
                       index.string(),
                       tensor,
                       mapped_[shards.at(shard)].path());
    }
  }

  void list_tensors() {
    for (const SafetensorsFile& file : mapped_) {
      for (const auto& entry : file.entries()) {
        tensors_.push_back({.name = entry.name,
                            .type = entry.dtype_name,
                            .dtype = entry.dtype,
                            .shape = entry.shape,
                            .data = file.data(entry),
                            .file = files_.size()});
      }
      files_.push_back({file.path(), file.file_bytes()});
    }
  }

  std::vector<SafetensorsFile> mapped_;
};

}  // namespace

bool is_safetensors_directory(const fs::path& path) {
  std::error_code code;
  return fs::is_directory(path, code);
}

std::unique_ptr<TensorSource> open_safetensors_directory(const fs::path& path) {
  return std::make_unique<SafetensorsDirectory>(path);
}

}  // namespace ferry
