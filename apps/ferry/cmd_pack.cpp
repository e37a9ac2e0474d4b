// ferry pack: a checkpoint written again with its weights as they lie in memory, so that no start
// packs them.
#include <memory>
#include <string>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/progress.h"
#include "apps/ferry/rewrite_options.h"
#include "ferry/model/packed_checkpoint.h"

namespace ferry {

namespace {

struct PackCommand {
  RewriteOptions files;
  std::string weights;
  std::string activations = "auto";
};

int pack(const PackCommand& o) {
  const auto weights = parse_weights_option("--weights", o.weights);
  const Activations activations = parse_activations(o.activations, "--activations");
  const Checkpoint source = o.files.open();
  ThreadPool pool(o.files.num_threads());
  Progress progress(o.files.out, !o.files.quiet, "packing to", "packed to");
  write_packed(source, weights, activations, o.files.out, pool, progress.callback());
  return 0;
}

}  // namespace

void add_pack(Command& app, int& status) {
  Command* command = app.add_subcommand(
      "pack", "Write a checkpoint again with its weights as they lie in memory: it opens at once");
  auto o = std::make_shared<PackCommand>();
  o->files.add_to(*command);
  command
      ->add_option("--weights",
                   o->weights,
                   "As the other commands hold them with this option [as in the checkpoint]")
      ->type_name("W");
  command
      ->add_option("--activations",
                   o->activations,
                   "For rows as the other commands round them with this option: auto, int8")
      ->type_name("A")
      ->capture_default_str();
  command->callback([o, &status] {
    refuse_launcher("pack");
    status = pack(*o);
  });
}

}  // namespace ferry
