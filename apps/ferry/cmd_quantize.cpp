// ferry quantize: a checkpoint written again with quantised matrices, so that they need not be made
// at every start.
#include <memory>
#include <string>

#include "apps/ferry/command.h"
#include "apps/ferry/command_line.h"
#include "apps/ferry/common_options.h"
#include "apps/ferry/progress.h"
#include "apps/ferry/rewrite_options.h"
#include "ferry/core/error.h"
#include "ferry/model/quantized_checkpoint.h"

namespace ferry {

namespace {

struct QuantizeCommand {
  RewriteOptions files;
  std::string weights = "int8";
  double shard_gb = 2;
};

int quantize(const QuantizeCommand& o) {
  if (!(o.shard_gb > 0 && o.shard_gb < 1e6))
    fail<ConfigError>("--shard-gb must be above 0, not {}", o.shard_gb);
  const QuantizeOptions options{.type = parse_weight_type(o.weights, "--weights"),
                                .max_shard_bytes = static_cast<std::uint64_t>(o.shard_gb * 1e9)};
  const Checkpoint source = o.files.open();
  ThreadPool pool(o.files.num_threads());
  Progress progress(o.files.out, !o.files.quiet, "quantising to", "quantised to");
  write_quantized(source, options, o.files.out, pool, progress.callback());
  return 0;
}

}  // namespace

void add_quantize(Command& app, int& status) {
  Command* command = app.add_subcommand(
      "quantize", "Write a checkpoint again with int8, fp8, int4 or mxfp4 matrices");
  auto o = std::make_shared<QuantizeCommand>();
  o->files.add_to(*command);
  command->add_option("--weights", o->weights, "int8, fp8 (DeepSeek-V3's format), int4 or mxfp4")
      ->type_name("W")
      ->capture_default_str();
  command->add_option("--shard-gb", o->shard_gb, "Cut the weights into files of at most G GB")
      ->type_name("G")
      ->capture_default_str();
  command->callback([o, &status] {
    refuse_launcher("quantize");
    status = quantize(*o);
  });
}

}  // namespace ferry
