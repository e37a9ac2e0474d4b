// A config.json: every family's fields.
#include "ferry/model/config.h"

#include "fuzz/fuzz_entry.h"

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  ferry::test::run_on_input([&] {
    const ferry::ModelConfig config =
        ferry::parse_config(ferry::test::text_of(data, size), "config.json");
    if (static_cast<int>(config.layer_kinds.size()) != config.layers) std::abort();
  });
  return 0;
}
