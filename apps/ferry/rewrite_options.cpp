#include "apps/ferry/rewrite_options.h"

#include "apps/ferry/common_options.h"
#include "ferry/checkpoint/hub_cache.h"
#include "ferry/runtime/core_map.h"

namespace ferry {

void RewriteOptions::add_to(Command& app) {
  app.add_option("--model,--model-path",
                 model,
                 "Checkpoint directory, file .gguf, or org/name in the local Hugging Face cache "
                 "[the demo model]")
      ->type_name("DIR");
  app.add_option("--out", out, "Directory to write; new or empty")->type_name("DIR")->required();
  app.add_option("--threads", threads, "Threads [cores]")->range(1, 4096)->type_name("N");
  app.add_flag("--quiet", quiet, "No progress");
}

Checkpoint RewriteOptions::open() const {
  return Checkpoint::open(model.empty() ? find_demo_model() : find_model(model));
}

int RewriteOptions::num_threads() const { return threads > 0 ? threads : default_threads(1); }

}  // namespace ferry
