// ferry quantize: a checkpoint written again with quantised matrices, so that they need not be made
// at every start.
#include <memory>
#include <string>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/progress.h"
#include "ferry/checkpoint/hub_cache.h"
#include "ferry/core/error.h"
#include "ferry/model/quantized_checkpoint.h"
#include "ferry/runtime/core_map.h"

namespace ferry {

namespace {

struct QuantizeCommand {
  std::string model;
  std::string weights = "int8";
  std::string out;
  double shard_gb = 2;
  int threads = 0;
  bool quiet = false;
};

int quantize(const QuantizeCommand& o) {
  if (!(o.shard_gb > 0 && o.shard_gb < 1e6))
    fail<ConfigError>("--shard-gb must be above 0, not {}", o.shard_gb);
  const QuantizeOptions options{.type = parse_weight_type(o.weights, "--weights"),
                                .max_shard_bytes = static_cast<std::uint64_t>(o.shard_gb * 1e9)};
  const Checkpoint source =
      Checkpoint::open(o.model.empty() ? find_demo_model() : find_model(o.model));
  ThreadPool pool(o.threads > 0 ? o.threads : default_threads(1));
  Progress progress(o.out, !o.quiet, "quantising to", "quantised to");
  write_quantized(source, options, o.out, pool, progress.callback());
  return 0;
}

}  // namespace

void add_quantize(Command& app, int& status) {
  Command* command = app.add_subcommand(
      "quantize", "Write a checkpoint again with int8, fp8, int4 or mxfp4 matrices");
  auto o = std::make_shared<QuantizeCommand>();
  command
      ->add_option("--model,--model-path",
                   o->model,
                   "Checkpoint directory, file .gguf, or org/name in the local Hugging Face cache "
                   "[the demo model]")
      ->type_name("DIR");
  command->add_option("--weights", o->weights, "int8, fp8 (DeepSeek-V3's format), int4 or mxfp4")
      ->type_name("W")
      ->capture_default_str();
  command->add_option("--out", o->out, "Directory to write; new or empty")
      ->type_name("DIR")
      ->required();
  command->add_option("--shard-gb", o->shard_gb, "Cut the weights into files of at most G GB")
      ->type_name("G")
      ->capture_default_str();
  command->add_option("--threads", o->threads, "Threads [cores]")->range(1, 4096)->type_name("N");
  command->add_flag("--quiet", o->quiet, "No progress");
  command->callback([o, &status] {
    refuse_launcher("quantize");
    status = quantize(*o);
  });
}

}  // namespace ferry
