// ferry make-model: a checkpoint of random weights, of any size, for benchmarks and tests.
#include <fmt/format.h>

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/progress.h"
#include "ferry/core/error.h"
#include "ferry/model/family.h"
#include "ferry/model/random_model.h"

namespace ferry {

namespace {

/// Sizes that override the preset's.
constexpr std::array<std::pair<const char*, int RandomModelOptions::*>, 10> kSizes{{
    {"--hidden", &RandomModelOptions::hidden},
    {"--layers", &RandomModelOptions::layers},
    {"--heads", &RandomModelOptions::heads},
    {"--kv-heads", &RandomModelOptions::kv_heads},
    {"--head-dim", &RandomModelOptions::head_dim},
    {"--experts", &RandomModelOptions::experts},
    {"--topk", &RandomModelOptions::topk},
    {"--inter", &RandomModelOptions::inter},
    {"--shared-inter", &RandomModelOptions::shared_inter},
    {"--vocab", &RandomModelOptions::vocab},
}};

struct MakeModelOptions {
  std::string arch = "qwen3_moe";
  std::string preset = "tiny";
  std::string out;
  std::string dtype = "bf16";
  std::array<int, kSizes.size()> sizes{};
  std::uint64_t seed = 0;
  double shard_gb = 2;
  bool tied = false;
  bool predictor = false;
  bool quiet = false;
};

DType parse_element_type(const std::string& name) {
  for (const DType type : {DType::f32, DType::bf16})
    if (name == dtype_name(type)) return type;
  fail<ConfigError>("--dtype must be f32 or bf16, not \"{}\"", name);
}

RandomModelOptions model_options(const MakeModelOptions& o, const Command& command) {
  std::optional<RandomModelOptions> model = random_model_preset(o.preset);
  if (!model) {
    fail<ConfigError>(
        "unknown preset \"{}\"; there are {}", o.preset, fmt::join(random_model_presets(), ", "));
  }
  model->arch = o.arch;
  for (std::size_t i = 0; i < kSizes.size(); ++i)
    if (command.count(kSizes[i].first) > 0) (*model).*(kSizes[i].second) = o.sizes[i];
  model->dtype = parse_element_type(o.dtype);
  model->seed = o.seed;
  model->predictor = o.predictor;
  model->tied_embeddings = model->tied_embeddings || o.tied;
  if (!(o.shard_gb > 0 && o.shard_gb < 1e6))
    fail<ConfigError>("--shard-gb must be above 0, not {}", o.shard_gb);
  model->max_shard_bytes = static_cast<std::uint64_t>(o.shard_gb * 1e9);
  return *model;
}

int make_model(const MakeModelOptions& o, const Command& command) {
  const RandomModelOptions model = model_options(o, command);
  static_cast<void>(
      random_model_config(model));  // wrong sizes are known before anything is written
  {
    Progress progress(o.out, !o.quiet, "writing", "wrote");
    write_random_model(model, o.out, progress.callback());
  }
  return 0;
}

}  // namespace

void add_make_model(Command& app, int& status) {
  Command* command =
      app.add_subcommand("make-model", "Write a checkpoint of random weights of any size");
  auto o = std::make_shared<MakeModelOptions>();
  std::vector<std::string_view> families;
  for (const ModelFamily& family : model_families()) families.push_back(family.model_type);
  command->add_option("--arch", o->arch, fmt::format("Model family: {}", fmt::join(families, ", ")))
      ->type_name("A")
      ->capture_default_str();
  command
      ->add_option("--preset",
                   o->preset,
                   fmt::format("Sizes to start from: {}", fmt::join(random_model_presets(), ", ")))
      ->type_name("P")
      ->capture_default_str();
  command->add_option("--out", o->out, "Directory to write; new or empty")
      ->type_name("DIR")
      ->required();
  for (std::size_t i = 0; i < kSizes.size(); ++i) {
    command->add_option(kSizes[i].first, o->sizes[i], "Instead of the preset's")
        ->type_name("N")
        ->group("Sizes");
  }
  command->add_flag("--tied", o->tied, "Logits use the embedding matrix")->group("Sizes");
  command->add_flag("--mtp", o->predictor, "With a layer that predicts further tokens")
      ->group("Sizes");
  command->add_option("--dtype", o->dtype, "f32 or bf16")->type_name("W")->capture_default_str();
  command->add_option("--seed", o->seed, "Of the weights")->type_name("S")->capture_default_str();
  command->add_option("--shard-gb", o->shard_gb, "Cut the weights into files of at most G GB")
      ->type_name("G")
      ->capture_default_str();
  command->add_flag("--quiet", o->quiet, "No progress");
  command->callback([o, command, &status] { status = make_model(*o, *command); });
}

}  // namespace ferry
