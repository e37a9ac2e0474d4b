// ferry bench: measurements, each beside the floor that the machine sets.
#include <CLI/CLI.hpp>

#include "apps/ferry/command.h"

namespace ferry {

void add_bench(CLI::App& app, int& status) {
  CLI::App* bench = app.add_subcommand("bench",
                                       "Measure: a2a (dispatch and combine), moe (one layer), "
                                       "model (prompts, tokens), link (two ranks)");
  bench->require_subcommand(1);
  add_bench_a2a(*bench, status);
  add_bench_moe(*bench, status);
  add_bench_model(*bench, status);
  add_bench_link(*bench, status);
}

}  // namespace ferry
