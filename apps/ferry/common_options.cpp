#include "apps/ferry/common_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <climits>
#include <cstdlib>
#include <thread>
#include <vector>

#include "ferry/core/error.h"

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

}  // namespace

CommonOptions::CommonOptions(CLI::App& app) {
  constexpr const char* kGroup = "Model and ranks";
  app.add_option("--model,--model-path", model_, "Checkpoint directory [the demo model]")
      ->type_name("DIR")
      ->group(kGroup);
  app.add_option("--ep", ep_, "Ranks that the experts are spread over")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--tp", tp_, "Tensor-parallel ranks; only 1 in this version")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--moe-a2a-backend",
                 backend_,
                 "How tokens travel to experts: pplx, alltoallv, deepep, none")
      ->type_name("B")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--deepep-mode", deepep_mode_, "Of backend deepep: low_latency, normal")
      ->type_name("M")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--transport", transport_, "inproc (ranks are threads), shm (processes)")
      ->type_name("T")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--threads", threads_, "Threads of each rank [cores / ranks]")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--weights", weights_, "Hold weights as f32 or bf16 [as in the checkpoint]")
      ->type_name("W")
      ->group(kGroup);
  app.add_option("--dispatch-wire", dispatch_wire_, "Rows travel out as f32 or bf16 [as weights]")
      ->type_name("W")
      ->group(kGroup);
  app.add_option("--combine-wire", combine_wire_, "Results come back as f32 or bf16 [as weights]")
      ->type_name("W")
      ->group(kGroup);
  app.add_option("--context-length", context_length_, "Positions of a sequence [the model's]")
      ->type_name("N")
      ->group(kGroup);
  app.add_option("--max-tokens", max_tokens_, "Tokens of a rank in one step; more are cut up")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--max-sequences", max_sequences_, "Sequences that run at once on a rank")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  app.add_option("--timeout", timeout_s_, "Seconds to wait for another rank inside a step")
      ->type_name("S")
      ->capture_default_str()
      ->group(kGroup);
  app.add_flag("--json", json_, "Results as JSON, alone on stdout");
  app.add_flag("--quiet", quiet_, "No progress and no summary");
}

RunOptions CommonOptions::resolve() const {
  RunOptions o;
  if (tp_ != 1) fail<ConfigError>("--tp must be 1 in this version, not {}", tp_);
  o.launch = {.transport = transport_, .ranks = ep_, .start_timeout = kStartTimeout};
  check_launch(o.launch);
  o.threads =
      threads_ == 0 ? default_threads(ep_) : in_range("--threads", threads_, 1, kMaxThreads);
  o.weights = parse_dtype_option("--weights", weights_);
  if (!(timeout_s_ > 0 && timeout_s_ <= kMaxTimeoutSeconds))
    fail<ConfigError>(
        "--timeout must be above 0 and at most {} s, not {}", kMaxTimeoutSeconds, timeout_s_);
  const auto timeout = std::chrono::duration_cast<std::chrono::nanoseconds>(
      std::chrono::duration<double>(timeout_s_));
  o.decoder = {.max_tokens = in_range("--max-tokens", max_tokens_, 1, 1 << 20),
               .backend = parse_backend(backend_),
               .deepep_mode = parse_deepep_mode(deepep_mode_),
               .dispatch_wire = parse_dtype_option("--dispatch-wire", dispatch_wire_),
               .combine_wire = parse_dtype_option("--combine-wire", combine_wire_),
               .timeout = timeout};
  o.engine = {.max_sequences_per_rank = in_range("--max-sequences", max_sequences_, 1, 1 << 16),
              .max_tokens_per_step = max_tokens_,
              .max_context = in_range("--context-length", context_length_, 0, INT_MAX),
              .hash_logits = false,
              .timeout = timeout};
  o.json = json_;
  o.quiet = quiet_;
  o.model = model_.empty() ? find_demo_model() : std::filesystem::path(model_);
  return o;
}

std::optional<DType> parse_dtype_option(std::string_view option, const std::string& text) {
  if (text.empty()) return std::nullopt;
  if (text == "f32") return DType::f32;
  if (text == "bf16") return DType::bf16;
  fail<ConfigError>("{} must be f32 or bf16, not \"{}\"", option, text);
}

int default_threads(int ranks) {
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / ranks);
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
