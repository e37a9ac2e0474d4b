#include "ferry/runtime/model_options.h"

#include <fmt/format.h>

#include <charconv>
#include <system_error>

#include "ferry/core/error.h"

namespace ferry {

ChooseBy parse_choose_by(std::string_view name, std::string_view option) {
  for (const ChooseBy by : {ChooseBy::counted, ChooseBy::measured})
    if (name == choose_by_name(by)) return by;
  fail<ConfigError>("unknown {} '{}'; known: counted, measured", option, name);
}

bool parse_load(std::string_view name, std::string_view option) {
  if (name != "read" && name != "mapped")
    fail<ConfigError>("{} {}: no such way; known: read, mapped", option, name);
  return name == "mapped";
}

std::optional<int> parse_experts_device(std::string_view name, std::string_view option) {
  if (name == "cpu") return std::nullopt;
  if (name == "cuda") return kDeviceOfRank;
  constexpr std::string_view kNumbered = "cuda:";
  int number = 0;
  if (name.starts_with(kNumbered)) {
    const char* end = name.data() + name.size();
    const auto read = std::from_chars(name.data() + kNumbered.size(), end, number);
    if (read.ec == std::errc() && read.ptr == end && number >= 0) return number;
  }
  fail<ConfigError>("{} {}: no such device; known: cpu, cuda, cuda:N", option, name);
}

std::string experts_device_name(std::optional<int> device) {
  if (!device) return "cpu";
  return *device == kDeviceOfRank ? "cuda" : fmt::format("cuda:{}", *device);
}

void check_experts_device(const ModelOptions& options, const ModelConfig& config, WeightType type) {
  if (!options.decoder.experts_device || config.sparse_layers() == 0) return;
  const MoeConfig& moe = config.moe;
  const auto refuse = [](std::string_view what, std::string_view instead) {
    fail<ConfigError>("--experts-device: {}; {}", what, instead);
  };
  if (options.numerics != Numerics::fast)
    refuse("a device has its own order of sums", "say --numerics fast with it");
  if (type != WeightType::bf16 && type != WeightType::fp8)
    refuse(fmt::format("experts there are bf16 or fp8, these are {}", weight_type_name(type)),
           "choose --weights bf16");
  if (options.engine.balance.rebalance.enabled)
    refuse("experts there stay where they are", "leave out --enable-eplb");
  if (options.decoder.expert_slices != 1)
    refuse("experts there are whole", "leave out --expert-slices");
  if (config.hidden % 16 != 0 || moe.inter % 16 != 0)
    refuse(fmt::format("experts there have sizes that are multiples of 16, these are {} and {}",
                       config.hidden,
                       moe.inter),
           "leave it out");
}

std::string_view choose_by_name(ChooseBy by) {
  return by == ChooseBy::counted ? "counted" : "measured";
}

}  // namespace ferry
