// How a model is opened and run on ranks, and what ranks that were started apart must have alike.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "ferry/engine/engine.h"
#include "ferry/kernels/kernels.h"
#include "ferry/kernels/packed_matrix.h"
#include "ferry/launch.h"
#include "ferry/model/config.h"
#include "ferry/model/decoder.h"
#include "ferry/runtime/initial_placement.h"

namespace ferry {

/// How Model::open() chooses where backend or mode are `automatic`.
enum class ChooseBy : std::uint8_t {
  counted,  ///< by bytes and messages: the same on every machine
  measured  ///< by what exchanges take: the ranks are launched once more for it, for a moment
};

/// From and to the names of the program's flag. Throws ConfigError.
ChooseBy parse_choose_by(std::string_view name, std::string_view option);
std::string_view choose_by_name(ChooseBy by);

/// Whether weights are mapped, by the name of a way to load them: "read" or "mapped". Throws
/// ConfigError for another.
bool parse_load(std::string_view name, std::string_view option);

/// Where experts are, by the name of a device: "cpu", "cuda" (each rank of a host has the next one)
/// or "cuda:N". Throws ConfigError for another.
std::optional<int> parse_experts_device(std::string_view name, std::string_view option);
std::string experts_device_name(std::optional<int> device);

struct ModelOptions {
  std::filesystem::path model;  ///< checkpoint directory, or a file .gguf
  /// The ranks. Also where the caller brings a transport of its own: then transport and ranks say
  /// what that is, and nothing is launched.
  LaunchOptions launch;
  int threads = 1;                    ///< of each rank
  std::optional<WeightType> weights;  ///< none: as in the checkpoint
  Activations activations = Activations::automatic;
  /// What a packed checkpoint has stays in its file, which is mapped; else it is read into memory
  /// of this process. Experts that may move (engine.balance) are read all the same.
  bool mapped = false;
  Numerics numerics = Numerics::exact;
  DecoderOptions decoder;  ///< backend and mode may be `automatic`: Model::open() chooses
  /// `measured` is not for those who bring a transport of their own.
  ChooseBy choose_by = ChooseBy::counted;
  bool allow_prereduce = false;  ///< `automatic` may sum on each rank first: other bits for other R
  EngineOptions engine;
  /// Of the memory that is available once the weights are loaded, for keys and values where
  /// engine.max_kv_tokens does not say how many. 0: no limit.
  double kv_memory_fraction = 0;
  ExpertLocationOptions expert_location;
};

/// Throws ConfigError unless the ranks divide into groups of decoder.tp, and these into those that
/// hold slices of the same experts, which stay where they are. Model::open() does it too.
void check_groups(const ModelOptions& options);

/// Throws ConfigError where the experts of this model, whose weights are held as `type`, cannot be
/// on a device as these options say. That there is one, each rank finds out.
void check_experts_device(const ModelOptions& options, const ModelConfig& config, WeightType type);

/// What all ranks must have alike of these options, named as the program's flags are. Every member
/// of every options struct is looked at: one that is added does not compile until agreement.cpp
/// says whether ranks must share it.
Agreement agreement_of(const ModelOptions& options);

}  // namespace ferry
