#include "ferry/checkpoint/gguf/gguf_source.h"

#include <fmt/ranges.h>

#include <array>
#include <charconv>
#include <deque>
#include <map>
#include <set>
#include <unordered_map>

#include "ferry/checkpoint/gguf/gguf_architecture.h"
#include "ferry/checkpoint/gguf/gguf_file.h"
#include "ferry/checkpoint/gguf/gguf_heads.h"
#include "ferry/checkpoint/gguf/gguf_tokenizer.h"
#include "ferry/core/error.h"
#include "ferry/core/portable_math.h"

namespace ferry {

namespace fs = std::filesystem;

namespace {

constexpr std::string_view kEnding = ".gguf";
constexpr std::string_view kHalf = "{half}";
constexpr std::string_view kOfLayer = "blk.";
constexpr std::int64_t kMostParts = 1000;
constexpr std::int64_t kMostLayers = 1 << 12;

/// A tensor's layer and what stands behind it: ("blk.3.attn_q.weight") is 3, "attn_q.weight"; -1
/// for one outside the layers.
std::pair<std::int64_t, std::string_view> layer_and_rest(std::string_view name) {
  if (!name.starts_with(kOfLayer)) return {-1, name};
  const std::string_view behind = name.substr(kOfLayer.size());
  std::int64_t layer = -1;
  const auto [end, error] = std::from_chars(behind.data(), behind.data() + behind.size(), layer);
  const auto digits = static_cast<std::size_t>(end - behind.data());
  if (error != std::errc() || layer < 0 || digits >= behind.size() || behind[digits] != '.')
    return {-1, name};
  return {layer, behind.substr(digits + 1)};
}

std::string filled(std::string_view pattern, std::int64_t layer, std::int64_t expert) {
  std::string name(pattern);
  for (const auto& [key, number] : {std::pair{"{layer}", layer}, {"{expert}", expert}}) {
    const auto at = name.find(key);
    if (at != std::string::npos)
      name.replace(at, std::string_view(key).size(), std::to_string(number));
  }
  return name;
}

/// The other parts of a model that lies in several files, as the first one says.
std::vector<fs::path> parts_behind(const fs::path& first, const GgufFields& fields) {
  const std::int64_t count = fields.size_or("split.count", 1);
  if (count <= 1) return {};
  if (count > kMostParts) fields.refuse("split.count", fmt::format("at most {}", kMostParts));
  const auto ending = [&](std::int64_t part) {
    return fmt::format("-{:05}-of-{:05}{}", part, count, kEnding);
  };
  const std::string name = first.filename().string();
  if (fields.size("split.no") != 0 || !name.ends_with(ending(1))) {
    fail<ModelError>("{}: expected the first of {} parts, whose name ends in {}, found another",
                     first.string(),
                     count,
                     ending(1));
  }
  std::vector<fs::path> parts;
  for (std::int64_t part = 2; part <= count; ++part)
    parts.push_back(first.parent_path() /
                    (name.substr(0, name.size() - ending(1).size()) + ending(part)));
  return parts;
}

/// The type that most elements of matrices have; codes are held as bf16.
std::string_view config_dtype(const std::deque<GgufFile>& files) {
  std::map<DType, std::int64_t> elements;
  for (const GgufFile& file : files) {
    for (const GgufFile::Tensor& tensor : file.tensors()) {
      if (tensor.shape.size() < 2) continue;
      const auto bytes = static_cast<std::int64_t>(tensor.data.size());
      elements[tensor.type->dtype.value_or(DType::bf16)] +=
          bytes / tensor.type->bytes * tensor.type->elements;
    }
  }
  DType most = DType::bf16;
  for (const auto& [type, count] : elements)
    if (count > elements[most]) most = type;
  if (most == DType::f32) return "float32";
  return most == DType::f16 ? "float16" : "bfloat16";
}

std::string block_types(const std::deque<GgufFile>& files) {
  std::set<std::string_view> types;
  for (const GgufFile& file : files)
    for (const GgufFile::Tensor& tensor : file.tensors())
      if (!tensor.type->dtype) types.insert(tensor.type->name);
  return fmt::format("{}", fmt::join(types, ", "));
}

class GgufSource final : public TensorSource {
 public:
  explicit GgufSource(const fs::path& path) : path_(path.string()) {
    files_.emplace_back(path);
    const GgufFields fields(files_.front());
    for (const fs::path& part : parts_behind(path, fields)) {
      files_.emplace_back(part);
      check_part(files_.back());
    }
    describe(fields);
    list_tensors(gguf_architecture(fields));
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      if (by_name_.emplace(tensors_[i].name, i).second) continue;
      fail<ModelError>("{}: tensor {}: expected one, found two",
                       file_names_[tensors_[i].file].path,
                       tensors_[i].name);
    }
  }

  const std::string& path() const override { return path_; }

  std::string_view described_by() const override { return "metadata"; }

  std::optional<SourceText> text(const std::string& name) const override {
    const GgufFields fields(files_.front());
    std::optional<std::string> text;
    if (name == "config.json") text = config_;
    if (name == "generation_config.json") text = gguf_generation_config(fields);
    if (name == "tokenizer.json") text = gguf_tokenizer(fields);
    if (name == "tokenizer_config.json") text = gguf_tokenizer_config(fields);
    if (!text) return std::nullopt;
    return SourceText{fmt::format("{}: {}", path_, name), *std::move(text)};
  }

  std::span<const SourceFile> files() const override { return file_names_; }

  std::span<const SourceTensor> tensors() const override { return tensors_; }

  const SourceTensor* find(std::string_view name) const override {
    const auto it = by_name_.find(name);
    return it == by_name_.end() ? nullptr : &tensors_[it->second];
  }

 private:
  /// REQUIRES: the part is the last of files_.
  void check_part(const GgufFile& part) const {
    const auto* number = std::get_if<std::int64_t>(part.find("split.no"));
    const auto expected = static_cast<std::int64_t>(files_.size()) - 1;
    if (number != nullptr && *number == expected) return;
    fail<ModelError>("{}: metadata split.no: expected {}, found {}",
                     part.path(),
                     expected,
                     number == nullptr ? "nothing" : std::to_string(*number));
  }

  void describe(const GgufFields& fields) {
    GgufModel model{.fields = fields, .tensors = {}, .dtype = config_dtype(files_)};
    model.blocks = block_types(files_);
    const std::int64_t blocks = fields.size(".block_count");
    if (blocks < 1 || blocks > kMostLayers)
      fields.refuse(".block_count", fmt::format("1 to {}", kMostLayers));
    const std::int64_t further = fields.size_or(".nextn_predict_layers", 0);
    if (further >= blocks)
      fields.refuse(".nextn_predict_layers", fmt::format("fewer than {} layers", blocks));
    model.layers = layers_ = blocks - further;
    all_layers_ = blocks;
    std::size_t count = 0;
    for (const GgufFile& file : files_) {
      file_names_.push_back({file.path(), file.file_bytes()});
      count += file.tensors().size();
      for (const GgufFile::Tensor& tensor : file.tensors()) {
        model.tensors.insert(tensor.name);
        if (tensor.name == "token_embd.weight") model.vocab = tensor.shape.front();
      }
    }
    if (files_.size() > 1 && fields.size("split.tensors.count") != static_cast<std::int64_t>(count))
      fields.refuse("split.tensors.count", fmt::format("the {} tensors of all parts", count));
    if (model.vocab == 0)
      fail<ModelError>("{}: tensor token_embd.weight: expected one, found none", path_);
    config_ = gguf_config(gguf_architecture(fields), model);
  }

  void list_tensors(const GgufArchitecture& architecture) {
    for (std::size_t i = 0; i < files_.size(); ++i)
      for (const GgufFile::Tensor& tensor : files_[i].tensors()) list(architecture, tensor, i);
  }

  /// Those of layers that predict further tokens keep their names, which nobody asks for.
  void list(const GgufArchitecture& architecture,
            const GgufFile::Tensor& tensor,
            std::size_t file) {
    const auto [layer, rest] = layer_and_rest(tensor.name);
    SourceTensor listed{.name = tensor.name,
                        .type = std::string(tensor.type->name),
                        .dtype = tensor.type->dtype,
                        .shape = tensor.shape,
                        .data = tensor.data,
                        .file = file};
    if (layer >= all_layers_) {
      fail<ModelError>("{}: tensor {}: expected one of {} layers (block_count), found another",
                       file_names_[file].path,
                       tensor.name,
                       all_layers_);
    }
    if (layer >= layers_) {
      tensors_.push_back(std::move(listed));
      return;
    }
    const auto name = gguf_name(architecture, rest);
    const bool of_layer = name && name->name.find("{layer}") != std::string_view::npos;
    if (!name || of_layer != (layer >= 0)) {
      fail<ModelError>("{}: tensor {}: expected one that {} is known to have, found another",
                       file_names_[file].path,
                       tensor.name,
                       architecture.name);
    }
    if (name->form == GgufForm::of_experts) return list_experts(*name, layer, std::move(listed));
    if (name->form == GgufForm::of_gates_and_ups)
      return list_gates_and_ups(*name, layer, std::move(listed));
    listed.name = filled(name->name, layer, -1);
    change(name->form, listed);
    tensors_.push_back(std::move(listed));
  }

  void list_experts(const GgufName& name, std::int64_t layer, SourceTensor all) {
    if (all.shape.size() < 2) {
      fail<ModelError>("{}: tensor {}: expected that of all experts, found one of {} dimension",
                       file_names_[all.file].path,
                       all.name,
                       all.shape.size());
    }
    const std::int64_t experts = all.shape.front();
    // Each becomes a tensor by itself: as many as the shape says could be millions.
    const std::int64_t meant = GgufFields(files_.front()).size_or(".expert_count", 0);
    if (experts != meant) {
      fail<ModelError>("{}: tensor {}: expected that of {} experts (expert_count), found {}",
                       file_names_[all.file].path,
                       all.name,
                       meant,
                       experts);
    }
    const std::size_t bytes = all.data.size() / static_cast<std::size_t>(experts);
    all.shape.erase(all.shape.begin());
    for (std::int64_t expert = 0; expert < experts; ++expert) {
      SourceTensor one = all;
      one.name = filled(name.name, layer, expert);
      one.data = all.data.subspan(static_cast<std::size_t>(expert) * bytes, bytes);
      tensors_.push_back(std::move(one));
    }
  }

  /// Gate's rows of each expert before up's.
  void list_gates_and_ups(const GgufName& name, std::int64_t layer, SourceTensor all) {
    const bool whole = all.shape.size() == 3 && all.shape[1] % 2 == 0;
    const std::size_t first = tensors_.size();
    list_experts(name, layer, std::move(all));
    const std::size_t end = tensors_.size();
    for (std::size_t i = first; i < end; ++i) {
      const SourceTensor both = tensors_[i];
      if (!whole) {
        fail<ModelError>("{}: tensor {}: expected as many gates as ups, found {} dimensions",
                         file_names_[both.file].path,
                         both.name,
                         both.shape.size() + 1);
      }
      const std::size_t bytes = both.data.size() / 2;
      for (const auto& [half, from] : {std::pair{"gate", std::size_t{0}}, {"up", bytes}}) {
        SourceTensor one = both;
        one.name.replace(one.name.find(kHalf), kHalf.size(), half);
        one.shape.front() /= 2;
        one.data = both.data.subspan(from, bytes);
        if (from == 0)
          tensors_[i] = std::move(one);
        else
          tensors_.push_back(std::move(one));
      }
    }
  }

  /// Heads of values as this file's architecture has them.
  ValueHeads value_heads() const {
    const GgufFields fields(files_.front());
    return {.key_heads = fields.size(".ssm.group_count"),
            .value_heads = fields.size(".ssm.time_step_rank")};
  }

  /// `each` floats of every head, behind `before` that stay where they are.
  void untile(std::vector<float>& made, std::int64_t before, std::int64_t each) const {
    const ValueHeads heads = value_heads();
    const std::vector<float> stored = made;
    for (std::int64_t i = 0; before + i < std::ssize(made); ++i)
      made[static_cast<std::size_t>(before + i)] =
          stored[static_cast<std::size_t>(before + heads.stored(i, each))];
  }

  /// To what a Hugging Face checkpoint has.
  void change(GgufForm form, SourceTensor& tensor) {
    if (form == GgufForm::one_row && tensor.shape.size() == 1)
      tensor.shape.insert(tensor.shape.begin(), 1);
    const bool taps = form == GgufForm::taps || form == GgufForm::tiled_taps;
    if (taps && tensor.shape.size() == 2) tensor.shape.insert(tensor.shape.begin() + 1, 1);
    if (form == GgufForm::as_it_is || form == GgufForm::one_row || form == GgufForm::taps) return;
    const GgufType& type = *find_gguf_type(tensor.type);
    // What reads other shapes and types refuses them.
    if (!type.dtype || tensor.shape.size() != (taps ? 3U : 1U)) return;
    std::int64_t count = 1;
    for (const std::int64_t size : tensor.shape) count *= size;
    std::vector<float>& made = made_.emplace_back(static_cast<std::size_t>(count));
    type.read_row(tensor.data.data(), count, made.data());
    make(form, tensor.shape, made);
    tensor.type = "F32";
    tensor.dtype = DType::f32;
    tensor.data = std::as_bytes(std::span(made));
  }

  void make(GgufForm form, std::span<const std::int64_t> shape, std::vector<float>& made) const {
    const bool log = form == GgufForm::log_of_minus || form == GgufForm::tiled_log_of_minus;
    for (float& x : made) {
      if (form == GgufForm::less_one) x -= 1.0F;
      if (log) x = static_cast<float>(natural_log(-static_cast<double>(x)));
    }
    if (form == GgufForm::less_one || form == GgufForm::log_of_minus) return;
    const ValueHeads heads = value_heads();
    if (form != GgufForm::tiled_taps) {
      if (shape[0] == heads.value_heads) untile(made, 0, 1);
      return;
    }
    const GgufFields fields(files_.front());
    const std::int64_t keys = 2 * heads.key_heads * fields.size(".ssm.state_size");
    const std::int64_t values = shape[0] - keys;
    if (values > 0 && values % heads.value_heads == 0)
      untile(made, keys * shape[2], values / heads.value_heads * shape[2]);
  }

  std::string path_;
  std::deque<GgufFile> files_;  // texts and tensors borrow from them
  std::vector<SourceFile> file_names_;
  std::string config_;
  std::int64_t layers_ = 0;
  std::int64_t all_layers_ = 0;  // with those that predict further tokens
  std::vector<SourceTensor> tensors_;
  std::deque<std::vector<float>> made_;  // small tensors that are not as the file has them
  std::unordered_map<std::string_view, std::size_t> by_name_;  // keys borrow from tensors_
};

}  // namespace

bool is_gguf_file(const fs::path& path) {
  std::error_code code;
  return path.extension() == kEnding && fs::exists(path, code) && !fs::is_directory(path, code);
}

std::unique_ptr<TensorSource> open_gguf_file(const fs::path& path) {
  return std::make_unique<GgufSource>(path);
}

}  // namespace ferry
