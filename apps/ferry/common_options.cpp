#include "apps/ferry/common_options.h"

#include <algorithm>
#include <climits>
#include <cstdlib>
#include <utility>
#include <vector>

#include "apps/ferry/command_line.h"
#include "ferry/checkpoint/hub_cache.h"
#include "ferry/core/error.h"
#include "ferry/model/kv_type.h"
#include "ferry/runtime/core_map.h"
#include "ferry/transport/registry.h"

namespace ferry {

namespace {

constexpr int kMaxThreads = 4096;
constexpr double kMaxTimeoutSeconds = 1e6;

int in_range(std::string_view option, int value, int low, int high) {
  if (value < low || value > high)
    fail<ConfigError>("{} must be {} to {}, not {}", option, low, high, value);
  return value;
}

/// Ranks load their share of the weights at different speeds, and meet only afterwards.
constexpr std::chrono::minutes kStartTimeout{10};

std::optional<WireType> parse_wire_option(std::string_view option, const std::string& text) {
  if (text.empty()) return std::nullopt;
  return parse_wire_type(text, option);
}

constexpr const char* kGroup = "Model and ranks";

/// Also where there is one rank: others may come.
World elastic_world() {
  std::optional<World> world = find_world();
  if (world && world->own == 1) return *world;
  fail<ConfigError>(
      "--elastic: every rank is a process that is started by itself; set RANK, WORLD_SIZE, "
      "MASTER_ADDR and MASTER_PORT, or use srun (docs/cluster.md)");
}

}  // namespace

void CommonOptions::add_network_options(Command& app) {
  app.add_option("--transport",
                 transport_,
                 "inproc (ranks are threads), shm (processes of one host), fabric (libfabric), mpi "
                 "[inproc; under a launcher mpi or fabric]")
      ->type_name("T")
      ->group(kGroup);
  app.add_option(
         "--ranks-per-host",
         ranks_per_host_,
         "Of fabric and mpi: so many ranks in a row share memory, a token crosses the network "
         "once for them; 1: none do [as ranks find each other; 1 where ferry starts them]")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--fabric-provider",
                 fabric_provider_,
                 "Of libfabric: efa, verbs, tcp, shm, ... [the best that all ranks have]")
      ->type_name("P")
      ->group(kGroup);
  app.add_option(
         "--fabric-rails",
         fabric_rails_,
         "Network interfaces of a rank, on which long puts take turns [all of efa and verbs, "
         "1 of others]")
      ->type_name("N")
      ->range(1, 64)
      ->group(kGroup);
  app.add_flag("--fabric-progress-thread",
               fabric_progress_thread_,
               "Move data while a rank computes, at the price of part of a core")
      ->group(kGroup);
}

void CommonOptions::add_exchange_options(Command& app) {
  app.add_option("--moe-a2a-backend",
                 backend_,
                 "How tokens travel to experts: pplx, deepep, alltoallv, mooncake, ascend_fuseep, "
                 "none, auto")
      ->type_name("B")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--deepep-mode", deepep_mode_, "Of backend deepep: normal, low_latency, auto")
      ->type_name("M")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--layout",
                 layout_,
                 "Rows as experts get them: padded, ragged, row_pointers [the backend's]")
      ->type_name("L")
      ->group(kGroup);
  app.add_option("--choose-by",
                 choose_by_,
                 "How auto chooses: measured (ranks try each for a moment at the start) or counted "
                 "(bytes and messages, the same on every machine) [measured; counted with "
                 "--elastic, and with --allow-prereduce, where the choice changes bits]")
      ->type_name("HOW")
      ->group(kGroup);
  app.add_flag("--allow-prereduce",
               allow_prereduce_,
               "auto may sum on each rank first: fewer bytes, other bits for other --ep")
      ->group(kGroup);
  app.add_flag("--two-batch-overlap",
               two_batch_overlap_,
               "Half of a step's tokens travel while the experts compute the other half")
      ->group(kGroup);
  app.add_option("--dispatch-wire",
                 dispatch_wire_,
                 "Rows travel out as f32, bf16, fp8, fp8_pow2, int8, int8_block [as activations]")
      ->type_name("W")
      ->group(kGroup);
  app.add_option(
         "--combine-wire", combine_wire_, "Results come back as one of these [as activations]")
      ->type_name("W")
      ->group(kGroup);
}

void CommonOptions::add_weight_options(Command& app) {
  app.add_option(
         "--weights",
         weights_,
         "Hold weights as f32, bf16, int8, fp8, int4 or mxfp4; quantised as they are loaded [as in "
         "the checkpoint]")
      ->type_name("W")
      ->group(kGroup);
  app.add_option("--activations",
                 activations_,
                 "auto: rows meet weights as the weights' format asks for; int8: rounded to 8 bits "
                 "where weights are GGUF's blocks or mxfp4")
      ->type_name("A")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--load",
                 load_,
                 "A packed checkpoint is read into memory, or mapped: pages of the file, shared "
                 "by all that map it")
      ->type_name("HOW")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option(
         "--numerics",
         numerics_,
         "exact: the same bits on every processor; fast: weights of bf16, or that become bf16, by "
         "the processor's own products, where it has them")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
}

CommonOptions::CommonOptions(Command& app) {
  app.add_option("--model,--model-path",
                 model_,
                 "Checkpoint directory, file .gguf, or org/name in the local Hugging Face cache "
                 "[the demo model]")
      ->type_name("DIR")
      ->group(kGroup);
  app.add_option("--ep",
                 ep_,
                 "Ranks that the experts are spread over [as --tp; one for each NUMA node; as many "
                 "as were started]")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--tp",
                 tp_,
                 "Ranks that hold the same sequences and share out attention, dense layers and "
                 "head; divides --ep")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--expert-slices",
                 expert_slices_,
                 "Ranks of one host that share out the columns of every expert, as --tp does the "
                 "rest; divides --tp, 1: whole experts")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option(
         "--experts-device",
         experts_device_,
         "Where routed experts are: cpu, cuda:N (that GPU's memory), or cuda (each rank of "
         "a host has the next GPU); a GPU needs --numerics fast, and weights of bf16 or fp8")
      ->type_name("D")
      ->capture_default_str()
      ->group(kGroup);
  add_exchange_options(app);
  add_network_options(app);
  app.add_option("--threads", threads_, "Threads of each rank [cores / ranks]")
      ->type_name("N")
      ->group(kGroup);
  add_weight_options(app);
  app.add_option("--kv-cache-dtype",
                 kv_type_,
                 "Keep keys and values as auto (as activations), f32, bf16, int8, fp8_e4m3 (or "
                 "fp8): narrower ones take less memory, and other bits come")
      ->type_name("T")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--context-length", context_length_, "Positions of a sequence [the model's]")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--max-tokens",
                 max_tokens_,
                 "Tokens of a rank (with --tp: a group) in one step; more are cut up")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--max-sequences",
                 max_sequences_,
                 "Sequences that run at once on a rank (with --tp: a group)")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_flag(
         "--disable-prefix-cache,--disable-radix-cache,--no-enable-prefix-caching,"
         "!--enable-prefix-caching",
         disable_prefix_cache_,
         "Every prompt runs from its first token on, also where another began with the same")
      ->group(kGroup);
  app.add_option("--timeout", timeout_s_, "Seconds to wait for another rank inside a step")
      ->type_name("S")
      ->capture_default_str()
      ->group(kGroup);
  speculation_.add_to(app);
  balance_.add_to(app);
  app.add_flag("--json", json_, "Results as JSON, alone on stdout");
  app.add_flag("--quiet", quiet_, "No progress and no summary");
}

LaunchOptions CommonOptions::resolve_launch(const std::optional<World>& world) const {
  LaunchOptions launch{.start_timeout = kStartTimeout,
                       .world = world,
                       .ranks_per_host = ranks_per_host_,
                       .fabric_provider = fabric_provider_,
                       .fabric_rails = fabric_rails_,
                       .fabric_progress_thread = fabric_progress_thread_};
  const int wanted = tp_ > 1 ? tp_ : default_ranks();
  launch.ranks = ep_.value_or(launch.world ? launch.world->size : wanted);
  launch.transport = transport_.empty() ? default_transport(launch.world) : transport_;
  launch.join_timeout = timeout();
  return launch;
}

std::chrono::nanoseconds CommonOptions::timeout() const {
  if (!(timeout_s_ > 0 && timeout_s_ <= kMaxTimeoutSeconds))
    fail<ConfigError>(
        "--timeout must be above 0 and at most {} s, not {}", kMaxTimeoutSeconds, timeout_s_);
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(timeout_s_));
}

ChooseBy CommonOptions::choose_by(bool elastic) const {
  if (choose_by_.empty())
    return elastic || allow_prereduce_ ? ChooseBy::counted : ChooseBy::measured;
  const ChooseBy by = parse_choose_by(choose_by_, "--choose-by");
  if (elastic && by == ChooseBy::measured)
    fail<ConfigError>(
        "--choose-by measured: a rank that comes to an --elastic group later has nobody to measure "
        "with; choose counted, or name the backend");
  return by;
}

RunOptions CommonOptions::resolve(bool elastic) const {
  RunOptions o;
  o.launch = resolve_launch(elastic ? elastic_world() : started_world());
  if (elastic) o.elastic = std::exchange(o.launch.world, std::nullopt);
  check_launch(o.launch);
  o.decoder.tp = tp_;
  o.decoder.expert_slices = expert_slices_;
  check_groups(o);
  o.threads = threads_ == 0 ? default_threads(o.launch.ranks)
                            : in_range("--threads", threads_, 1, kMaxThreads);
  o.weights = parse_weights_option("--weights", weights_);
  o.mapped = parse_load(load_, "--load");
  o.activations = parse_activations(activations_, "--activations");
  o.numerics = parse_numerics(numerics_, "--numerics");
  o.decoder = {.tp = tp_,
               .expert_slices = expert_slices_,
               .max_tokens = in_range("--max-tokens", max_tokens_, 1, 1 << 20),
               .backend = parse_backend(backend_),
               .deepep_mode = parse_deepep_mode(deepep_mode_),
               .layout = layout_.empty() ? std::nullopt : std::optional(parse_format(layout_)),
               .two_batch_overlap = two_batch_overlap_,
               .replica_rule = balance_.replica_rule(),
               .dispatch_wire = parse_wire_option("--dispatch-wire", dispatch_wire_),
               .combine_wire = parse_wire_option("--combine-wire", combine_wire_),
               .experts_device = parse_experts_device(experts_device_, "--experts-device"),
               .kv_type = parse_kv_type(kv_type_, "--kv-cache-dtype"),
               .timeout = timeout()};
  o.engine = {.max_sequences_per_rank = in_range("--max-sequences", max_sequences_, 1, 1 << 16),
              .max_tokens_per_step = max_tokens_,
              .max_context = in_range("--context-length", context_length_, 0, INT_MAX),
              .keep_prefixes = !disable_prefix_cache_,
              .drafts = speculation_.resolve(),
              .hash_logits = false,
              .timeout = timeout(),
              .balance = balance_.resolve()};
  o.load_report = balance_.report();
  o.expert_location = balance_.location();
  o.allow_prereduce = allow_prereduce_;
  o.choose_by = choose_by(elastic);
  o.json = json_;
  const std::optional<World>& world = elastic ? o.elastic : o.launch.world;
  o.quiet = quiet_ || (world && world->rank != 0);  // rank 0 speaks for all
  o.model = model_.empty() ? find_demo_model() : find_model(model_);
  return o;
}

std::optional<WeightType> parse_weights_option(std::string_view option, const std::string& text) {
  if (text.empty()) return std::nullopt;
  return parse_weight_type(text, option);
}

std::optional<World> started_world() {
  std::optional<World> world = find_world();
  if (world && world->size == 1) world.reset();  // nobody to meet
  return world;
}

void refuse_launcher(std::string_view command) {
  if (const auto world = started_world()) {
    fail<ConfigError>(
        "{} starts its own ranks, but this is rank {} of {}; run it without a launcher",
        command,
        world->rank,
        world->size);
  }
}

std::string default_transport(const std::optional<World>& world) {
  if (!world) return "inproc";
  if (world->launcher == World::Launcher::open_mpi || world->launcher == World::Launcher::mpich) {
    for (const TransportEntry& known : known_transports())
      if (known.name == "mpi" && known.why_not().empty()) return "mpi";
  }
  return "fabric";
}

std::filesystem::path find_demo_model() {
  namespace fs = std::filesystem;
  std::vector<fs::path> places;
  if (const char* home = std::getenv("FERRY_HOME"))
    places.push_back(fs::path(home) / "assets" / "demo-moe");
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored).parent_path();
  if (!program.empty()) {
    places.push_back(program.parent_path().parent_path() / "assets" /
                     "demo-moe");                                              // build/<preset>
    places.push_back(program.parent_path() / "share" / "ferry" / "demo-moe");  // installed
  }
  const fs::path source = fs::path(FERRY_SOURCE_DIR) / "assets" / "demo-moe";
  if (std::find(places.begin(), places.end(), source) == places.end()) places.push_back(source);
  std::string looked;
  for (const fs::path& place : places) {
    if (fs::exists(place / "config.json", ignored)) return place;
    looked += (looked.empty() ? "" : ", ") + place.string();
  }
  fail<ConfigError>("no --model given, and there is no demo model in {}; set FERRY_HOME or --model",
                    looked);
}

}  // namespace ferry
