#include "ferry/model/checkpoint.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "ferry/checkpoint/json_file.h"
#include "ferry/core/error.h"
#include "ferry/kernels/wire.h"

namespace ferry {

using nlohmann::json;

namespace {

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

/// How quantised matrices lie in the files: "x.weight" of `type`, and beside it their scales.
struct StoredFormat {
  Quantization quantization;
  StoredMatrix::Format format;
  WeightType weights;
  std::string_view type;
  std::string_view scales;  // behind the matrix's name
};

// In the place of a stack: [E, rows, columns / 32, 16] and [E, rows, columns / 32].
constexpr std::string_view kBytesType = "U8";
constexpr std::string_view kMxfp4Codes = "_blocks";
constexpr std::string_view kMxfp4Scales = "_scales";

constexpr std::array kFormats = {
    StoredFormat{
        Quantization::fp8, StoredMatrix::Format::fp8, WeightType::fp8, "F8_E4M3", "_scale_inv"},
    StoredFormat{Quantization::int8, StoredMatrix::Format::int8, WeightType::int8, "I8", "_scale"},
    StoredFormat{Quantization::int4, StoredMatrix::Format::int4, WeightType::int4, "U8", "_scale"}};

/// Where one expert's matrix or vector lies among those of all.
struct InStack {
  std::string_view stack;
  std::int64_t all_rows;  // that an expert has there
  StackPlace place;
};

InStack find_in_stack(const ModelConfig& config, const TensorNames& names, const TensorSpec& spec) {
  const auto is = [&](std::string_view pattern) {
    return spec.name == tensor_name(names, pattern, spec.layer, spec.expert);
  };
  const bool vector = spec.shape.size() == 1;
  const std::int64_t rows = spec.shape[0];
  StackPlace place{.expert = spec.expert, .rows = rows};
  if (is(names.expert_down) || is(names.expert_down_bias))
    return {vector ? names.stacked_down_bias : names.stacked_down, rows, place};
  const bool up = is(names.expert_up) || is(names.expert_up_bias);
  const bool alternating = config.moe.storage == ExpertStorage::alternating;
  place.step = alternating ? 2 : 1;
  if (up) place.first = alternating ? 1 : rows;
  return {vector ? names.stacked_gate_up_bias : names.stacked_gate_up, 2 * rows, place};
}

const StoredFormat* format_of(Quantization quantization, std::string_view type) {
  for (const StoredFormat& format : kFormats)
    if (format.quantization == quantization && format.type == type) return &format;
  return nullptr;
}

std::string scales_name(std::string_view matrix, const StoredFormat& format) {
  return std::string(matrix) + std::string(format.scales);
}

/// tensor -> shard file of an index. File names must stay inside the directory.
std::map<std::string, std::string> read_weight_map(const std::filesystem::path& index) {
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

}  // namespace

Checkpoint Checkpoint::open(const std::filesystem::path& directory) {
  std::error_code code;
  if (!std::filesystem::is_directory(directory, code)) {
    fail<ModelError>("{}: expected a checkpoint directory, found {}",
                     directory.string(),
                     std::filesystem::exists(directory, code) ? "a file" : "nothing");
  }
  Checkpoint checkpoint;
  checkpoint.directory_ = directory.string();
  checkpoint.config_ = load_config(directory);
  checkpoint.open_files(directory);
  checkpoint.check();
  return checkpoint;
}

void Checkpoint::open_files(const std::filesystem::path& directory) {
  std::error_code code;
  if (std::filesystem::exists(directory / kIndexFile, code)) {
    open_shards(directory / kIndexFile);
    return;
  }
  if (!std::filesystem::exists(directory / kSingleFile, code)) {
    fail<ModelError>(
        "{}: expected {} or {}, found neither", directory.string(), kSingleFile, kIndexFile);
  }
  files_.emplace_back(directory / kSingleFile);
  for (const auto& entry : files_[0].entries()) tensors_.emplace(entry.name, Place{0, &entry});
}

void Checkpoint::open_shards(const std::filesystem::path& index) {
  const auto weight_map = read_weight_map(index);
  std::map<std::string, std::size_t> shards;
  for (const auto& [tensor, shard] : weight_map) shards.emplace(shard, 0);
  files_.reserve(shards.size());
  for (auto& [shard, at] : shards) {
    at = files_.size();
    files_.emplace_back(index.parent_path() / shard);
  }
  for (const auto& [tensor, shard] : weight_map) {
    const std::size_t at = shards.at(shard);
    const auto* entry = files_[at].find(tensor);
    if (entry == nullptr) {
      fail<ModelError>("{}: expected tensor {} in {}, found none there",
                       index.string(),
                       tensor,
                       files_[at].path());
    }
    tensors_.emplace(entry->name, Place{at, entry});
  }
}

void Checkpoint::check() const {
  for_each_tensor(unstacked(config_), [&](const TensorSpec& spec) { stored_bytes(spec); });
}

const Checkpoint::Place* Checkpoint::find(std::string_view name) const {
  const auto it = tensors_.find(name);
  return it == tensors_.end() ? nullptr : &it->second;
}

DType Checkpoint::weight_type() const {
  if (config_.dtype) return *config_.dtype;
  return *find(tensor_name(names(), names().embedding))->entry->dtype;  // check() made sure of both
}

const Checkpoint::Place& Checkpoint::find(std::string_view name,
                                          std::span<const std::int64_t> shape) const {
  const Place* place = find(name);
  if (place == nullptr) {
    fail<ModelError>("{}: tensor {}: expected [{}], found no such tensor",
                     files_.size() == 1 ? files_[0].path() : directory_,
                     name,
                     fmt::join(shape, ", "));
  }
  if (!std::ranges::equal(place->entry->shape, shape)) {
    fail<ModelError>("{}: tensor {}: expected [{}] as config.json says, found [{}]",
                     files_[place->file].path(),
                     name,
                     fmt::join(shape, ", "),
                     fmt::join(place->entry->shape, ", "));
  }
  return *place;
}

TensorView Checkpoint::tensor(std::string_view name, std::span<const std::int64_t> shape) const {
  const Place& place = find(name, shape);
  return files_[place.file].view(*place.entry);
}

StoredMatrix Checkpoint::matrix(std::string_view name,
                                std::int64_t rows,
                                std::int64_t columns) const {
  const Place* there = find(name);
  const StoredFormat* format =
      there == nullptr ? nullptr : format_of(config_.quantization, there->entry->dtype_name);
  if (format == nullptr) {
    const Place& place = find(name, std::array{rows, columns});
    return plain_matrix(files_[place.file].view(*place.entry));
  }
  const Place& place = find(name, std::array{rows, code_row_bytes(format->weights, columns)});
  return {.format = format->format,
          .rows = rows,
          .columns = columns,
          .data = files_[place.file].data(*place.entry),
          .scales = tensor(scales_name(name, *format),
                           std::array{ceil_div(rows, rows_per_scale(format->weights)),
                                      weight_groups(format->weights, columns)})};
}

StoredMatrix Checkpoint::matrix(const TensorSpec& spec) const {
  if (spec.expert >= 0 && config_.moe.stacked()) return stacked(spec);
  if (spec.shape.size() == 2) return matrix(spec.name, spec.shape[0], spec.shape[1]);
  const TensorView vector = tensor(spec);
  return {.dtype = vector.dtype,
          .rows = spec.shape[0],
          .columns = 1,
          .data = vector.span(),
          .scales = {}};
}

StoredMatrix Checkpoint::stacked(const TensorSpec& spec) const {
  const auto [stack, all_rows, place] = find_in_stack(config_, names(), spec);
  const std::string name = tensor_name(names(), stack, spec.layer);
  const std::int64_t experts = config_.moe.experts;
  if (spec.shape.size() == 1) {
    TensorView vectors = tensor(name, std::array{experts, all_rows});
    vectors.shape = {experts, 1, all_rows};
    return stacked_matrix(vectors, place);
  }
  const std::int64_t columns = spec.shape[1];
  const std::string blocks = name + std::string(kMxfp4Codes);
  if (config_.quantization != Quantization::mxfp4 || find(blocks) == nullptr)
    return stacked_matrix(tensor(name, std::array{experts, columns, all_rows}), place);
  const std::int64_t groups = columns / StoredMatrix::kMxfp4Group;
  const auto codes =
      bytes(blocks, std::array{experts, all_rows, groups, StoredMatrix::kMxfp4Group / 2});
  const auto scales =
      bytes(name + std::string(kMxfp4Scales), std::array{experts, all_rows, groups});
  return stacked_mxfp4_matrix(codes, scales, experts, columns, place);
}

std::span<const std::byte> Checkpoint::bytes(std::string_view name,
                                             std::span<const std::int64_t> shape) const {
  const Place& place = find(name, shape);
  const SafetensorsFile& file = files_[place.file];
  if (place.entry->dtype_name != kBytesType) {
    fail<ModelError>("{}: tensor {}: expected elements of {}, found {}",
                     file.path(),
                     name,
                     kBytesType,
                     place.entry->dtype_name);
  }
  return file.data(*place.entry);
}

std::uint64_t Checkpoint::stored_bytes(const TensorSpec& spec) const {
  return spec.shape.size() <= 2 ? matrix(spec).bytes() : tensor(spec).bytes;
}

std::vector<const SafetensorsFile::Entry*> Checkpoint::entries() const {
  std::vector<const SafetensorsFile::Entry*> result;
  for (const SafetensorsFile& file : files_) {
    for (const auto& entry : file.entries()) result.push_back(&entry);
  }
  return result;
}

std::vector<std::string> Checkpoint::unused() const {
  std::set<std::string> names;
  for (const auto* entry : entries()) names.insert(entry->name);
  for_each_tensor(config_, [&](const TensorSpec& spec) {
    names.erase(spec.name);
    const Place* place = find(spec.name);
    if (place == nullptr) {
      names.erase(spec.name + std::string(kMxfp4Codes));
      names.erase(spec.name + std::string(kMxfp4Scales));
    } else if (const auto* format = format_of(config_.quantization, place->entry->dtype_name)) {
      names.erase(scales_name(spec.name, *format));
    }
  });
  return {names.begin(), names.end()};
}

}  // namespace ferry
