// The options that all subcommands share, parsed and checked in this one place.
#pragma once

#include <chrono>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "apps/ferry/balance_options.h"
#include "apps/ferry/speculation_flags.h"
#include "ferry/core/types.h"
#include "ferry/runtime/model_options.h"
#include "ferry/world.h"

namespace ferry {

class Command;

/// What a run over ranks needs to know, and what to tell of it; every value is checked.
struct RunOptions : ModelOptions {
  LoadReportOptions load_report;
  bool json = false;
  bool quiet = false;
  std::optional<World> elastic = {};  ///< this process's place where ranks come and go
};

/// Registers the options on a subcommand; must live until parsing is over.
class CommonOptions {
 public:
  explicit CommonOptions(Command& app);
  CommonOptions(const CommonOptions&) = delete;
  CommonOptions& operator=(const CommonOptions&) = delete;

  /// Throws ConfigError that names the option, what is allowed and what was found.
  RunOptions resolve(bool elastic = false) const;

 private:
  void add_exchange_options(Command& app);
  void add_network_options(Command& app);
  void add_weight_options(Command& app);
  LaunchOptions resolve_launch(const std::optional<World>& world) const;
  std::chrono::nanoseconds timeout() const;
  ChooseBy choose_by(bool elastic) const;

  std::string model_;
  std::optional<int> ep_;
  int tp_ = 1;
  int expert_slices_ = 1;
  std::string experts_device_ = "cpu";
  std::string backend_ = "pplx";
  std::string deepep_mode_ = "auto";
  std::string layout_;
  std::string choose_by_;
  bool allow_prereduce_ = false;
  bool two_batch_overlap_ = false;
  std::string transport_;
  int ranks_per_host_ = 0;
  std::string fabric_provider_;
  int fabric_rails_ = 0;
  bool fabric_progress_thread_ = false;
  int threads_ = 0;
  std::string weights_;
  std::string activations_ = "auto";
  std::string load_ = "read";
  std::string numerics_ = "exact";
  std::string dispatch_wire_;
  std::string combine_wire_;
  std::string kv_type_ = "auto";
  double timeout_s_ = 30;
  int context_length_ = 0;
  int max_tokens_ = 512;
  int max_sequences_ = 16;
  bool disable_prefix_cache_ = false;
  SpeculationFlags speculation_;
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

/// The directory of the demo model, which is used where no model is named. Throws ConfigError that
/// says where it looked.
std::filesystem::path find_demo_model();

}  // namespace ferry
