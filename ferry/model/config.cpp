#include "ferry/model/config.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "ferry/checkpoint/config_reader.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/checkpoint/tensor_source.h"
#include "ferry/core/error.h"
#include "ferry/core/portable_math.h"
#include "ferry/model/config_defaults.h"
#include "ferry/model/family.h"
#include "ferry/model/mixers/mixer.h"

namespace ferry {

using nlohmann::json;

namespace {

// As kMaxWidth: limits that only a damaged file passes.
constexpr int kMaxHeads = 1 << 14;
constexpr int kMaxHeadDim = Rope::kMaxDim;
constexpr int kMaxLayers = 1 << 12;
constexpr int kMaxPositions = 1 << 28;

constexpr const char* kConfigFile = "config.json";
constexpr const char* kGenerationFile = "generation_config.json";

const ModelFamily& choose_family(const ConfigReader& in) {
  std::string name = in.text_or("model_type", "");
  if (in.has("architectures")) {
    const json& list = in.value("architectures");
    if (!list.is_array() || list.empty() || !list[0].is_string()) {
      in.refuse("architectures", "a list of names");
    }
    name = list[0].get<std::string>();
  }
  const ModelFamily* family = find_family(name);
  // Families may share an architecture; the model type, which publishers also make up, then
  // decides.
  const ModelFamily* by_type = find_family(in.text_or("model_type", ""));
  if (by_type != nullptr && (by_type->architecture == name || by_type->architecture_saved == name))
    family = by_type;
  if (family != nullptr) return *family;
  std::string known;
  for (const ModelFamily& f : model_families()) {
    known += known.empty() ? "" : ", ";
    known += f.architecture;
  }
  in.refuse(in.has("architectures") ? "architectures" : "model_type", "one of " + known);
}

std::optional<DType> read_dtype(const ConfigReader& in) {
  const char* key = in.has("dtype") ? "dtype" : "torch_dtype";
  const std::string name = in.text_or(key, "");
  if (name.empty()) return std::nullopt;
  if (name == "float32") return DType::f32;
  if (name == "bfloat16") return DType::bf16;
  if (name == "float16") return DType::f16;
  in.refuse(key, "float32, bfloat16 or float16");
}

/// Whether a form that only stacks have can be this model's.
void check_stacked_format(const ConfigReader& in, const ModelConfig& config) {
  const ConfigReader quantization = in.object("quantization_config");
  const StoredFormat& format = *config.stored_format;
  if (!config.moe.stacked()) {
    quantization.refuse("quant_method",
                        fmt::format("no {} with {}", format.name(), config.architecture));
  }
  const std::int64_t unit = format.column_unit();
  if (config.hidden % unit != 0 || config.moe.inter % unit != 0) {
    quantization.refuse(
        "quant_method",
        fmt::format("no {} with hidden {} and experts {} wide, which {} must divide",
                    format.name(),
                    config.hidden,
                    config.moe.inter,
                    unit));
  }
}

/// Where every head is of head_dim elements.
void read_attention(const ConfigReader& in, ModelConfig& config) {
  config.heads = in.size("num_attention_heads", kMaxHeads);
  config.kv_heads = in.size_or("num_key_value_heads", kMaxHeads, config.heads);
  if (config.heads % config.kv_heads != 0) {
    in.refuse("num_key_value_heads", fmt::format("a divisor of {} heads", config.heads));
  }
  if (!in.has("head_dim") && config.hidden % config.heads != 0) {
    in.refuse("num_attention_heads",
              fmt::format("a divisor of hidden_size {}, as head_dim is absent", config.hidden));
  }
  config.head_dim = in.size_or("head_dim", kMaxHeadDim, config.hidden / config.heads);
  if (config.head_dim % 2 != 0) {
    fail<ModelError>("{}: field head_dim: expected an even number, found {}{}",
                     in.file(),
                     config.head_dim,
                     in.has("head_dim") ? "" : " (hidden_size / num_attention_heads)");
  }
  config.rope = read_rope(in, config.head_dim, config.max_positions);
}

/// The kinds of layers by name, which a family may make of other fields: those must agree.
void check_mlp_layer_types(const ConfigReader& in, const ModelConfig& config) {
  constexpr const char* kKey = "mlp_layer_types";
  if (!in.states(kKey)) return;
  const json& types = in.value(kKey);
  bool same = types.is_array() && types.size() == config.layer_kinds.size();
  for (std::size_t i = 0; same && i < config.layer_kinds.size(); ++i)
    same = types[i] == (config.layer_kinds[i] == LayerKind::sparse ? "sparse" : "dense");
  if (same) return;
  in.refuse(
      kKey,
      fmt::format("\"dense\" or \"sparse\" for each of {} layers, as the other fields have it",
                  config.layers));
}

/// What describes the text model.
ConfigReader text_part(const ConfigReader& in, const ModelFamily& family, const json& defaults) {
  if (family.text_fields == nullptr) return in.over(defaults);
  if (!in.has(family.text_fields)) in.refuse(family.text_fields, "an object");
  return in.object(family.text_fields).over(defaults);
}

/// One outside the vocabulary can never be drawn, so nothing ends on it.
std::vector<std::int32_t> read_eos(const ConfigReader& in, int vocab) {
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  std::vector<std::int32_t> ids = in.integers("eos_token_id", -kMost, kMost);
  std::erase_if(ids, [&](std::int32_t id) { return id < 0 || id >= vocab; });
  return ids;
}

void read_generation(const std::optional<SourceText>& text, ModelConfig& config) {
  if (!text) return;
  const json fields = parse_json(text->text, text->file);
  if (!fields.is_object())
    fail<ModelError>("{}: expected a JSON object, found {}", text->file, describe(fields));
  const ConfigReader in(fields, text->file);
  if (in.has("eos_token_id")) config.eos_ids = read_eos(in, config.vocab);
}

/// Only of families whose layers of this kind can be used; those of others are left out.
void read_predictors(const ConfigReader& in, const ModelFamily& family, ModelConfig& config) {
  if (!family.names.draft_layer()) return;
  const auto stated = in.integers(family.predictors_field, 0, kMaxLayers);
  config.predictors = stated.empty() ? family.predictors : stated.front();
}

}  // namespace

float QueryGrowth::factor(std::int32_t position) const {
  if (step == 0) return 1.0F;
  // Rounded to f32 before and after, as transformers does.
  const std::int32_t steps = (position + (counts_itself ? 1 : 0)) / step;
  return static_cast<float>(natural_log(1.0 + static_cast<double>(steps))) *
             static_cast<float>(strength) +
         1.0F;
}

std::int64_t LayerAttention::first(std::int64_t position) const {
  return std::max(span.first(position), std::min<std::int64_t>(position, skips_first ? 1 : 0));
}

int ModelConfig::sparse_layers() const {
  return static_cast<int>(std::count(layer_kinds.begin(), layer_kinds.end(), LayerKind::sparse));
}

ModelConfig unstacked(ModelConfig config) {
  config.moe.storage = ExpertStorage::apart;
  return config;
}

ModelConfig with_draft_layer(ModelConfig config, const std::string& file) {
  constexpr const char* kOption = "--speculate mtp";
  const ModelFamily& own = family_of(config);
  if (!own.names.draft_layer()) {
    std::string known;
    for (const ModelFamily& family : model_families())
      if (family.names.draft_layer())
        known += fmt::format("{}{}", known.empty() ? "" : ", ", family.model_type);
    fail<ConfigError>(
        "{}: layers that predict further tokens are supported of {}, and {} is a {}; --speculate "
        "ngram needs none",
        kOption,
        known,
        file,
        config.model_type);
  }
  if (config.predictors == 0)
    fail<ConfigError>(
        "{}: {} has no layer that predicts further tokens ({}); --speculate ngram needs none",
        kOption,
        file,
        own.predictors_field);
  // Recurrent layers foresee nothing: it has attention as those have that have some.
  const auto attends = [](const LayerAttention& layer) {
    return layer.mixer == kAttention || layer.mixer == kLatentAttention;
  };
  const auto like =
      std::ranges::find_if(config.layer_attention.rbegin(), config.layer_attention.rend(), attends);
  FERRY_CHECK(like != config.layer_attention.rend(), "{} has no attention", config.model_type);
  LayerAttention attention = *like;
  attention.skips_first = true;
  config.layer_attention.push_back(attention);
  config.layer_kinds.push_back(config.moe.experts > 0 ? LayerKind::sparse : LayerKind::dense);
  config.draft_layers = 1;
  return config;
}

ModelConfig parse_config(std::string_view text, const std::string& file) {
  const json fields = parse_json(text, file);
  if (!fields.is_object()) {
    fail<ModelError>("{}: expected a JSON object, found {}", file, describe(fields));
  }
  const ConfigReader all(fields, file);
  const ModelFamily& family = choose_family(all);
  const json defaults = parse_json(
      config_defaults(family.config_class.empty() ? family.model_type : family.config_class),
      "config_defaults.cpp");
  const ConfigReader in = text_part(all, family, defaults);

  ModelConfig config;
  config.architecture = family.architecture;
  config.model_type = family.model_type;
  if (in.text_or("hidden_act", "silu") != "silu") in.refuse("hidden_act", "\"silu\"");
  if (all.has("quantization_config")) {
    config.stored_format = read_stored_format(all.object("quantization_config"));
    if (std::string note = config.stored_format->note(); !note.empty())
      config.notes.push_back(std::move(note));
  }
  config.hidden = in.size("hidden_size", kMaxWidth);
  config.vocab = in.size("vocab_size", kMaxWidth);
  config.max_positions = in.size("max_position_embeddings", kMaxPositions);
  config.rms_eps = static_cast<float>(in.positive(family.eps_field));
  config.layers = in.size("num_hidden_layers", kMaxLayers);
  config.layer_kinds.assign(static_cast<std::size_t>(config.layers), LayerKind::sparse);
  config.layer_attention.resize(static_cast<std::size_t>(config.layers));
  if (family.latent) {
    config.heads = in.size("num_attention_heads", kMaxHeads);
    config.kv_heads = config.heads;
  } else {
    read_attention(in, config);
  }
  config.tied_embeddings = in.flag_or("tie_word_embeddings", false);
  config.dtype = read_dtype(in);
  if (!config.dtype) config.dtype = read_dtype(all);
  const bool outside = !in.states("eos_token_id") && all.has("eos_token_id");
  config.eos_ids = read_eos(outside ? all : in, config.vocab);
  family.read(in, config);
  read_predictors(in, family, config);
  check_mlp_layer_types(in, config);
  check_mixers(config, file);
  if (config.stored_format != nullptr && config.stored_format->stacks_experts())
    check_stacked_format(all, config);
  return config;
}

ModelConfig load_config(const TensorSource& source) {
  const SourceText text = source.text(kConfigFile).value();
  ModelConfig config = parse_config(text.text, text.file);
  read_generation(source.text(kGenerationFile), config);
  return config;
}

ModelConfig load_config(const std::filesystem::path& directory) {
  const auto text = model_text(directory, kConfigFile);
  if (!text)
    fail<ModelError>("{}: expected a file, found none", (directory / kConfigFile).string());
  ModelConfig config = parse_config(text->text, text->file);
  read_generation(model_text(directory, kGenerationFile), config);
  return config;
}

}  // namespace ferry
