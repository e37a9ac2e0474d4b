// A stack of its own for a function that stops in the middle and goes on later: what threads of
// emulated blocks are made of. Boost.Context switches; the sanitizers are told of every switch.
#pragma once

#include <cstddef>
#include <memory>

namespace ferry::testing::gpu {

/// One function at a time runs on a fibre. A fibre may be started anew whenever it is not running:
/// what had stopped there is forgotten, with no destructor run. A started function has the
/// floating-point mode of the thread that called start(), for itself alone.
class Fibre {
 public:
  explicit Fibre(std::size_t stack_bytes);  ///< a page that may not be touched lies below
  ~Fibre();
  Fibre(const Fibre&) = delete;
  Fibre& operator=(const Fibre&) = delete;

  void start(void (*function)(void*), void* argument);

  /// Runs the function until it suspends (true) or returns (false). It may throw nothing.
  bool resume();

  /// Called by the function: back to who resumed it.
  void suspend();

 private:
  struct Entry;
  void leave(bool for_good);

  std::size_t bytes_ = 0;
  std::byte* memory_ = nullptr;  // with the page below
  std::byte* stack_ = nullptr;   // its lowest byte
  void* context_ = nullptr;      // of what has stopped here
  void* resumer_ = nullptr;      // of who resumed it
  void (*function_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool returned_ = true;

  // What the sanitizers keep of the two sides.
  void* fake_stack_ = nullptr;
  const void* resumer_stack_ = nullptr;
  std::size_t resumer_stack_bytes_ = 0;
  void* thread_sanitizer_ = nullptr;
  void* thread_sanitizer_resumer_ = nullptr;
};

/// Idle fibres of the process, as making one costs more than a small launch. Any thread may call.
/// Throws std::runtime_error where there are as many as there can be.
std::unique_ptr<Fibre> take_fibre();
void give_back(std::unique_ptr<Fibre> fibre);

}  // namespace ferry::testing::gpu
