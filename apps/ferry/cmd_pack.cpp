// ferry pack: a checkpoint written again with its weights as they lie in memory, so that no start
// packs them.
#include <memory>
#include <string>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/progress.h"
#include "ferry/checkpoint/hub_cache.h"
#include "ferry/model/packed_checkpoint.h"
#include "ferry/runtime/core_map.h"

namespace ferry {

namespace {

struct PackCommand {
  std::string model;
  std::string weights;
  std::string out;
  int threads = 0;
  bool quiet = false;
};

int pack(const PackCommand& o) {
  const auto weights = parse_weights_option("--weights", o.weights);
  const Checkpoint source =
      Checkpoint::open(o.model.empty() ? find_demo_model() : find_model(o.model));
  ThreadPool pool(o.threads > 0 ? o.threads : default_threads(1));
  Progress progress(o.out, !o.quiet, "packing to", "packed to");
  write_packed(source, weights, o.out, pool, progress.callback());
  return 0;
}

}  // namespace

void add_pack(Command& app, int& status) {
  Command* command = app.add_subcommand(
      "pack", "Write a checkpoint again with its weights as they lie in memory: it opens at once");
  auto o = std::make_shared<PackCommand>();
  command
      ->add_option("--model,--model-path",
                   o->model,
                   "Checkpoint directory, file .gguf, or org/name in the local Hugging Face cache "
                   "[the demo model]")
      ->type_name("DIR");
  command
      ->add_option("--weights",
                   o->weights,
                   "As the other commands hold them with this option [as in the checkpoint]")
      ->type_name("W");
  command->add_option("--out", o->out, "Directory to write; new or empty")
      ->type_name("DIR")
      ->required();
  command->add_option("--threads", o->threads, "Threads [cores]")->range(1, 4096)->type_name("N");
  command->add_flag("--quiet", o->quiet, "No progress");
  command->callback([o, &status] {
    refuse_launcher("pack");
    status = pack(*o);
  });
}

}  // namespace ferry
