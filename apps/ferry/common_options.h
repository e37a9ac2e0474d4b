// The options that all subcommands share, parsed and checked in this one place.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "ferry/core/types.h"
#include "ferry/engine/engine.h"
#include "ferry/model/decoder.h"
#include "ferry/transport/launch.h"

namespace CLI {
class App;
}

namespace ferry {

/// What a run over ranks needs to know; every value is checked.
struct RunOptions {
  std::filesystem::path model;  ///< exists
  LaunchOptions launch;
  int threads = 1;  ///< of each rank
  std::optional<DType> weights;
  DecoderOptions decoder;
  EngineOptions engine;
  bool json = false;
  bool quiet = false;
};

/// Registers the options on a subcommand; must live until parsing is over.
class CommonOptions {
 public:
  explicit CommonOptions(CLI::App& app);
  CommonOptions(const CommonOptions&) = delete;
  CommonOptions& operator=(const CommonOptions&) = delete;

  /// Throws ConfigError that names the option, what is allowed and what was found.
  RunOptions resolve() const;

 private:
  std::string model_;
  int ep_ = 1;
  int tp_ = 1;
  std::string backend_ = "pplx";
  std::string deepep_mode_ = "low_latency";
  std::string transport_ = "inproc";
  int threads_ = 0;
  std::string weights_;
  std::string dispatch_wire_;
  std::string combine_wire_;
  double timeout_s_ = 30;
  int context_length_ = 0;
  int max_tokens_ = 512;
  int max_sequences_ = 16;
  bool json_ = false;
  bool quiet_ = false;
};

/// f32 or bf16; empty text = absent. Throws ConfigError that names `option`.
std::optional<DType> parse_dtype_option(std::string_view option, const std::string& text);

/// Cores of this machine over ranks, at least 1.
int default_threads(int ranks);

/// The directory of the demo model, which is used where no model is named. Throws ConfigError that
/// says where it looked.
std::filesystem::path find_demo_model();

}  // namespace ferry
