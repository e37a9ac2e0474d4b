#include "ferry/engine/load_dump.h"

#include <fmt/format.h>

#include <cstdint>
#include <span>
#include <vector>

namespace ferry {

void write_load_dump(const Balancer& balancer,
                     const ModelConfig& config,
                     FunctionRef<void(std::string_view)> write) {
  const LoadRecorder& recorder = balancer.recorder();
  const auto experts = static_cast<std::size_t>(config.moe.experts);
  const std::vector<std::int32_t> no_load(experts, 0);
  write("{\"logical_count\":[");
  for (int step = 0; step < recorder.window_steps(); ++step) {
    std::span<const std::int32_t> counts = recorder.step_counts(step);
    write(step == 0 ? "\n[" : ",\n[");
    for (int layer = 0; layer < config.all_layers(); ++layer) {
      if (layer > 0) write(",");
      const bool sparse = config.sparse(layer);
      write(
          fmt::format("[{}]", fmt::join(sparse ? counts.first(experts) : std::span(no_load), ",")));
      if (sparse) counts = counts.subspan(experts);
    }
    write("]");
  }
  write("],\n\"physical_to_logical_map\":[");
  for (int layer = 0; layer < config.all_layers(); ++layer) {
    write(layer == 0 ? "\n" : ",\n");
    write(fmt::format("[{}]", fmt::join(balancer.map_of_layer(layer), ",")));
  }
  write("]}\n");
}

}  // namespace ferry
