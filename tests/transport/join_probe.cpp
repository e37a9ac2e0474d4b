// A program that knows nothing of the test that starts it, as a rank of torchrun's would: joins the
// ranks that the environment tells of (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT, FERRY_TOKEN)
// over the transport that is its argument, says hello to all, and prints what it heard.
#include <cstdio>

#include "ferry/tcp_store.h"
#include "joining.h"

int main(int argc, char** argv) {
  try {
    const std::jthread bystander([](const std::stop_token& stop) {
      while (!stop.stop_requested()) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    });
    const auto world = ferry::find_world();
    if (!world || argc < 2)
      throw ferry::ConfigError("RANK, WORLD_SIZE or the transport is missing");
    ferry::TcpStore store(ferry::store_options(*world));
    ferry::JoinOptions options = ferry::join_options(*world, argv[1]);
    if (argc > 2) options.join_timeout = std::chrono::seconds(std::atoi(argv[2]));
    const auto transport = ferry::join(options, store);
    std::puts(ferry::say_hello(*transport).c_str());
    return 0;
  } catch (const ferry::Error& e) {
    std::puts(e.what());
    return 1;
  }
}
