// Intel AMX in software, so that kernels that use tiles are tested on machines that have none. Such
// a machine raises SIGILL at each of their instructions; the emulator decodes it, does what Intel's
// manual says (Software Developer's Manual volume 2, "TDPBF16PS" and so on) and goes on behind it.
// An instruction costs about a microsecond.
//
// Tile loads and stores are plain reads and writes here: AddressSanitizer sees those out of bounds.
#pragma once

#include <csignal>
#include <cstdint>

namespace ferry::testing {

/// While it lives, threads of this process can use tiles. One at a time; not beside another handler
/// of SIGILL. Ends the process, with a line that says why, at instructions that real tiles would
/// refuse: without a configuration, with shapes that do not fit.
class AmxEmulator {
 public:
  AmxEmulator();
  ~AmxEmulator();
  AmxEmulator(const AmxEmulator&) = delete;
  AmxEmulator& operator=(const AmxEmulator&) = delete;

  /// Whether this machine lacks tiles and has what else the amx kernels use.
  static bool useful();

  /// Tile products so far, in this process.
  static std::uint64_t products();

 private:
  struct sigaction before_;
};

}  // namespace ferry::testing
