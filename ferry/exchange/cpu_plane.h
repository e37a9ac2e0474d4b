// The data plane on the host: every step at once, rows on the rank's threads.
#pragma once

#include <memory>
#include <vector>

#include "ferry/core/threads.h"
#include "ferry/exchange/data_plane.h"

namespace ferry {

/// Borrows the pool. Threads: as DataPlane, and the pool's rule.
class CpuPlane final : public DataPlane {
 public:
  explicit CpuPlane(ThreadPool& pool);

  std::string_view name() const override { return "cpu"; }

  MemoryPlace place() const override { return {}; }

  void check(const MemoryPlace& place, std::string_view what) const override;
  std::unique_ptr<PlaneMemory> allocate(std::size_t bytes, bool sparse) override;

  std::size_t width() const override { return scratch_.size(); }

  void reserve(const ReduceLimits& limits) override;

  void stage(const StageRows& work) override;
  void gather(const GatherRows& work) override;
  void point(const ArrivedRows& work, const std::byte** pointers) override;
  void encode(const EncodeRows& work) override;
  void reduce(const ReduceRows& work) override;

 private:
  /// A thread's sums in hand, and one that is encoded next.
  struct Scratch {
    SumList list;
    std::vector<float> sum;
  };

  void add_up(const ReduceRows& work, Scratch& scratch) const;

  ThreadPool& pool_;
  std::vector<Scratch> scratch_;  // [threads]
};

}  // namespace ferry
