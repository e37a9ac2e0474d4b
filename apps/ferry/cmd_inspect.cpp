// ferry inspect: what a checkpoint holds and what each rank would load of it. Reads headers only,
// but for --check.
#include <fmt/core.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "ferry/checkpoint/hub_cache.h"
#include "ferry/checkpoint/packed_file.h"
#include "ferry/checkpoint/stored_format.h"
#include "ferry/core/error.h"
#include "ferry/model/checkpoint.h"
#include "ferry/model/kv_type.h"
#include "ferry/model/mixers/mixer.h"
#include "ferry/model/summary.h"
#include "ferry/model/weights.h"
#include "ferry/text/chat_template.h"

namespace ferry {

namespace {

using Json = nlohmann::ordered_json;

struct InspectOptions {
  std::string directory;
  int ep = 1;
  std::string kv_type = "auto";
  bool json = false;
  bool check = false;
};

constexpr int kMaxRanks = 1 << 16;
constexpr std::size_t kUnusedShown = 5;

/// "1.23 GB", in powers of 1000 as disks count.
std::string human(double number, std::string_view unit) {
  constexpr std::array<std::string_view, 5> kPrefixes{"", "k", "M", "G", "T"};
  std::size_t prefix = 0;
  for (; number >= 1000 && prefix + 1 < kPrefixes.size(); ++prefix) number /= 1000;
  return fmt::format("{:.{}f} {}{}", number, prefix == 0 ? 0 : 2, kPrefixes[prefix], unit);
}

std::string human(std::uint64_t bytes) { return human(static_cast<double>(bytes), "B"); }

std::string count(std::int64_t number) { return human(static_cast<double>(number), ""); }

/// Whether all chats can be made prompts of. A template that is refused, or parts of it, does not
/// keep anybody from generating text, so it is reported, not thrown.
struct ChatSupport {
  bool present = false;
  std::string refusal;  // empty: it is supported
};

ChatSupport chat_support(const std::string& directory) {
  try {
    const auto chat = ChatTemplate::load(directory);
    if (!chat) return {};
    const auto& warnings = chat->warnings();
    return {.present = true, .refusal = warnings.empty() ? "" : warnings[0]};
  } catch (const ModelError& e) {
    return {.present = true, .refusal = e.what()};
  }
}

Json to_json(const ChatSupport& chat) {
  if (!chat.present) return nullptr;
  Json report{{"supported", chat.refusal.empty()}};
  if (!chat.refusal.empty()) report["error"] = chat.refusal;
  return report;
}

/// Of keys and values.
WireType kv_type_of(const Checkpoint& checkpoint, const InspectOptions& o) {
  const auto given = parse_kv_type(o.kv_type, "--kv-cache-dtype");
  check_kv_type(given, checkpoint.config());
  return given.value_or(wire_type(activation_type(choose_weights(checkpoint, {}).type)));
}

/// The form of what is stored quantised; empty where all is plain.
std::string stored_as(const Checkpoint& checkpoint) {
  const auto& format = checkpoint.config().stored_format;
  return format == nullptr ? "" : std::string(format->name());
}

/// Without --weights.
std::string held_as(const Checkpoint& checkpoint) {
  return held_names(checkpoint, choose_weights(checkpoint, {}));
}

/// What the layers' kinds of mixers say, those of one kind once.
std::string describe_mixers(const ModelConfig& config) {
  std::string text;
  std::set<std::string_view> seen;
  for (int layer = 0; layer < config.layers; ++layer) {
    const MixerKind& kind = mixer_of(config, layer);
    if (!seen.insert(kind.name()).second) continue;
    if (!text.empty()) text += ", ";
    text += kind.describe(config);
  }
  return text;
}

Json to_json(const Checkpoint& checkpoint,
             const ModelSummary& s,
             const ChatSupport& chat,
             const std::vector<RankBytes>& ranks,
             WireType kv_type) {
  const ModelConfig& c = checkpoint.config();
  const StateLayout state(state_specs(c, kv_type));
  Json report{{"model", checkpoint.directory()},
              {"architecture", c.architecture},
              {"layers", c.layers},
              {"sparse_layers", c.sparse_layers()},
              {"hidden", c.hidden},
              {"heads", c.heads},
              {"kv_heads", c.kv_heads},
              {"head_dim", c.head_dim},
              {"latent_rank", c.latent.rank},
              {"kv_type", kv_type_name(kv_type)},
              {"kv_bytes_per_token", state.bytes_per_position()},
              {"bytes_per_sequence", state.bytes_beside_pages()},
              {"vocab", c.vocab},
              {"max_positions", c.max_positions},
              {"experts", c.moe.experts},
              {"topk", c.moe.topk},
              {"inter", c.moe.inter},
              {"shared_inter", c.moe.shared_inter},
              {"parameters", s.parameters},
              {"active_parameters", s.active_parameters},
              {"expert_parameters", s.expert_parameters},
              {"parameters_per_expert", s.parameters_per_expert},
              {"file_bytes", s.file_bytes},
              {"stored_as", stored_as(checkpoint)},
              {"held_as", held_as(checkpoint)}};
  for (const auto& [type, held] : s.by_type)
    report["bytes_by_dtype"][type] = {{"tensors", held.tensors}, {"bytes", held.bytes}};
  report["unused_tensors"] = s.unused;
  report["notes"] = checkpoint.notes();
  report["chat_template"] = to_json(chat);
  report["ranks"] = Json::array();
  for (const RankBytes& rank : ranks) {
    report["ranks"].push_back({{"experts_per_layer", rank.experts_held},
                               {"dense_bytes", rank.file.dense},
                               {"expert_bytes", rank.file.experts},
                               {"bytes", rank.file.total()},
                               {"dense_memory_bytes", rank.memory.dense},
                               {"expert_memory_bytes", rank.memory.experts},
                               {"memory_bytes", rank.memory.total()}});
  }
  return report;
}

void print_tables(const Checkpoint& checkpoint,
                  const ModelSummary& s,
                  const ChatSupport& chat,
                  const std::vector<RankBytes>& ranks,
                  WireType kv_type) {
  const ModelConfig& c = checkpoint.config();
  fmt::print("{}\n", checkpoint.directory());
  fmt::print("  architecture   {}, {} layers ({} sparse), hidden {}\n",
             c.architecture,
             c.layers,
             c.sparse_layers(),
             c.hidden);
  fmt::print("  attention      {} heads of {}, {}; {} positions\n",
             c.heads,
             c.head_dim,
             describe_mixers(c),
             c.max_positions);
  const StateLayout state(state_specs(c, kv_type));
  fmt::print("  cache          {} for each token, as {}{}\n",
             human(state.bytes_per_position()),
             kv_type_name(kv_type),
             state.bytes_beside_pages() > 0
                 ? fmt::format(", {} for each sequence", human(state.bytes_beside_pages()))
                 : std::string());
  fmt::print("  experts        {} of width {}, {} for each token{}\n",
             c.moe.experts,
             c.moe.inter,
             c.moe.topk,
             c.moe.shared_inter > 0 ? fmt::format("; shared one of width {}", c.moe.shared_inter)
                                    : std::string());
  fmt::print("  vocabulary     {}{}\n", c.vocab, c.tied_embeddings ? ", tied embeddings" : "");
  fmt::print("  parameters     {}, of which {} for each token; {} in experts ({} each)\n",
             count(s.parameters),
             count(s.active_parameters),
             count(s.expert_parameters),
             count(s.parameters_per_expert));
  fmt::print("  weights        stored {}, held as {}\n",
             c.stored_format ? "as " + stored_as(checkpoint) : "plain",
             held_as(checkpoint));
  for (const auto& [type, held] : s.by_type)
    fmt::print("  {:<14} {} in {} tensors\n", type, human(held.bytes), held.tensors);
  for (const std::string& note : checkpoint.notes()) fmt::print("  note           {}\n", note);
  for (std::size_t i = 0; i < std::min(s.unused.size(), kUnusedShown); ++i)
    fmt::print("  not used       {}\n", s.unused[i]);
  if (s.unused.size() > kUnusedShown)
    fmt::print("  not used       and {} more tensors\n", s.unused.size() - kUnusedShown);
  fmt::print("  chat template  {}\n",
             !chat.present          ? "none"
             : chat.refusal.empty() ? "supported"
                                    : "not supported: " + chat.refusal);

  fmt::print("\n{:>6} {:>14} {:>12} {:>12} {:>12} {:>12}\n",
             "rank",
             "experts/layer",
             "dense",
             "experts",
             "to load",
             "in memory");
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    fmt::print("{:>6} {:>14} {:>12} {:>12} {:>12} {:>12}\n",
               r,
               ranks[r].experts_held,
               human(ranks[r].file.dense),
               human(ranks[r].file.experts),
               human(ranks[r].file.total()),
               human(ranks[r].memory.total()));
  }
}

void check_packed(const Checkpoint& checkpoint) {
  const PackedFile* packed = checkpoint.source().packed();
  if (packed == nullptr)
    fail<ConfigError>("--check: {} has no checksums, not being packed", checkpoint.directory());
  packed->verify();
}

int inspect(const InspectOptions& o) {
  if (o.ep < 1 || o.ep > kMaxRanks)
    fail<ConfigError>("--ep must be 1 to {}, not {}", kMaxRanks, o.ep);
  const std::filesystem::path directory = find_model(o.directory);
  const Checkpoint checkpoint = Checkpoint::open(directory);
  if (o.check) check_packed(checkpoint);
  const WireType kv_type = kv_type_of(checkpoint, o);
  const ModelSummary summary = summarize(checkpoint);
  const std::vector<RankBytes> ranks = bytes_per_rank(checkpoint, o.ep);
  const ChatSupport chat = chat_support(directory);
  if (o.json)
    fmt::print("{}\n", to_json(checkpoint, summary, chat, ranks, kv_type).dump(2));
  else
    print_tables(checkpoint, summary, chat, ranks, kv_type);
  return 0;
}

}  // namespace

void add_inspect(Command& app, int& status) {
  Command* command = app.add_subcommand(
      "inspect", "Show what a checkpoint holds and what each rank would load of it");
  auto options = std::make_shared<InspectOptions>();
  command
      ->add_option("directory",
                   options->directory,
                   "Checkpoint directory, file .gguf, or org/name in the local Hugging Face cache")
      ->type_name("DIR")
      ->required();
  command->add_option("--ep", options->ep, "Ranks that the experts are spread over")
      ->type_name("N")
      ->capture_default_str();
  command
      ->add_option("--kv-cache-dtype",
                   options->kv_type,
                   "Keys and values as auto (as activations), f32, bf16, int8, fp8_e4m3 (or fp8)")
      ->type_name("T")
      ->capture_default_str();
  command->add_flag(
      "--check", options->check, "Read all of a packed checkpoint and compare its checksums, too");
  command->add_flag("--json", options->json, "As JSON");
  command->callback([options, &status] { status = inspect(*options); });
}

}  // namespace ferry
