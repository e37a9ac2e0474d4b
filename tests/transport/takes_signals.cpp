// A library that takes signals while it is loaded, as libfabric's psm libraries do.
#include <signal.h>

extern "C" {
extern __attribute__((visibility("default"))) int signals_taken;
int signals_taken = 0;
}

namespace {

void take(int) {}

bool take_two() {
  if (signal(SIGINT, take) != SIG_ERR) ++signals_taken;
  if (signal(SIGUSR1, take) != SIG_ERR) ++signals_taken;
  return true;
}

const bool done = take_two();

}  // namespace
