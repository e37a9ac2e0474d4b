// ferry bench: measurements, each beside the floor that the machine sets.

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"

namespace ferry {

void add_bench(Command& app, int& status) {
  Command* bench = app.add_subcommand("bench",
                                      "Measure: a2a (dispatch and combine), moe (one layer), "
                                      "model (prompts, tokens), link (two ranks)");
  bench->require_subcommand();
  add_bench_a2a(*bench, status);
  add_bench_moe(*bench, status);
  add_bench_model(*bench, status);
  add_bench_link(*bench, status);
}

}  // namespace ferry
