// The options that all subcommands share, parsed and checked in this one place.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "apps/ferry/balance_options.h"
#include "ferry/core/types.h"
#include "ferry/engine/engine.h"
#include "ferry/model/decoder.h"
#include "ferry/transport/launch.h"

namespace ferry {

class Command;

/// What a run over ranks needs to know; every value is checked.
struct RunOptions {
  std::filesystem::path model;  ///< exists
  LaunchOptions launch;
  int threads = 1;  ///< of each rank
  std::optional<WeightType> weights;
  DecoderOptions decoder;  ///< backend and mode as asked for; open_session() replaces "auto"
  bool allow_prereduce = false;
  EngineOptions engine;
  /// Of the memory that is available once the weights are loaded, for keys and values where
  /// engine.max_kv_tokens does not say how many. 0: no limit.
  double kv_memory_fraction = 0;
  LoadReportOptions load_report;
  ExpertLocationOptions expert_location;
  bool json = false;
  bool quiet = false;
};

/// Registers the options on a subcommand; must live until parsing is over.
class CommonOptions {
 public:
  explicit CommonOptions(Command& app);
  CommonOptions(const CommonOptions&) = delete;
  CommonOptions& operator=(const CommonOptions&) = delete;

  /// Throws ConfigError that names the option, what is allowed and what was found.
  RunOptions resolve() const;

 private:
  void add_network_options(Command& app);
  LaunchOptions resolve_launch() const;
  std::chrono::nanoseconds timeout() const;

  std::string model_;
  std::optional<int> ep_;
  int tp_ = 1;
  std::string backend_ = "pplx";
  std::string deepep_mode_ = "auto";
  std::string layout_;
  bool allow_prereduce_ = false;
  bool two_batch_overlap_ = false;
  std::string transport_;
  int ranks_per_host_ = 0;
  std::string fabric_provider_;
  int fabric_rails_ = 0;
  bool fabric_progress_thread_ = false;
  int threads_ = 0;
  std::string weights_;
  std::string dispatch_wire_;
  std::string combine_wire_;
  double timeout_s_ = 30;
  int context_length_ = 0;
  int max_tokens_ = 512;
  int max_sequences_ = 16;
  BalanceFlags balance_;
  bool json_ = false;
  bool quiet_ = false;
};

/// Empty text = absent. Throws ConfigError that names `option`.
std::optional<WeightType> parse_weights_option(std::string_view option, const std::string& text);

/// The ranks that a launcher started, where there are several.
std::optional<World> started_world();

/// Throws ConfigError under a launcher, for commands that start their own ranks.
void refuse_launcher(std::string_view command);

/// What --transport means when it is not given.
std::string default_transport(const std::optional<World>& world);

/// NUMA nodes that this process may use: a rank on each keeps its experts beside its cores.
int default_ranks();

/// Cores of this machine over ranks, at least 1.
int default_threads(int ranks);

/// The directory of the demo model, which is used where no model is named. Throws ConfigError that
/// says where it looked.
std::filesystem::path find_demo_model();

}  // namespace ferry
