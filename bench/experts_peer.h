// Another library's experts, for experts_bench: built where the library is found.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "ferry/core/threads.h"

namespace ferry {

class ExpertsPeer {
 public:
  /// All experts have the same numbers, bf16, row-major: gate and up [inter, hidden], down
  /// [hidden, inter].
  struct Weights {
    int hidden = 0;
    int inter = 0;
    int experts = 0;
    const std::byte* gate = nullptr;
    const std::byte* up = nullptr;
    const std::byte* down = nullptr;
  };

  virtual ~ExpertsPeer() = default;

  virtual std::string name() const = 0;

  /// out = down(silu(gate(in)) * up(in)) for counts[e] rows of each expert e, one expert behind the
  /// other. in: bf16 [rows, hidden]; out: f32 [rows, hidden]. Experts are handed out to the pool's
  /// threads.
  virtual void run(ThreadPool& pool,
                   std::span<const std::int32_t> counts,
                   const std::byte* in,
                   float* out) = 0;
};

/// Null where no such library was found. Copies the weights into the library's own layout.
std::unique_ptr<ExpertsPeer> make_experts_peer(const ExpertsPeer::Weights& weights);

}  // namespace ferry
