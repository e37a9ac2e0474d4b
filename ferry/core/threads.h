// The threads of one rank (ferry/threads.h), and how they compute.
#pragma once

#include <cstdint>

#include "ferry/core/wait.h"
#include "ferry/threads.h"

namespace ferry {

/// While alive, this thread treats denormals as zero, on input and output. The numerics contract
/// (docs/design.md) asks for it because AMX always does; restores the old mode at the end.
class FlushDenormals {
 public:
  FlushDenormals() noexcept;
  ~FlushDenormals();
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  std::uint32_t saved_;
};

}  // namespace ferry
