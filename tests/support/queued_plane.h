// A data plane that stands in for a device: it runs everything later, on a thread of its own, in
// order, and lets the host see nothing of it before it synchronises.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "ferry/exchange/cpu_plane.h"
#include "ferry/expert_rows.h"

namespace ferry {

/// Memory that it allocates has two addresses: data(), where its queue works, and seen(), which
/// callers get and which is a fault to touch until synchronise() opens it; the next step that is
/// submitted closes it again. Threads: as DataPlane.
class QueuedPlane final : public DataPlane {
 public:
  enum class Start {
    at_once,        ///< the queue runs beside the caller
    at_synchronise  ///< it stands still until then: as a step that is captured first and run after
  };

  QueuedPlane(ThreadPool& pool, Start start);
  ~QueuedPlane() override;

  std::string_view name() const override { return "queued"; }

  MemoryPlace place() const override {
    return {.kind = MemoryKind::device, .queue = const_cast<QueuedPlane*>(this)};
  }

  void check(const MemoryPlace& place, std::string_view what) const override;

  bool runs_later() const override { return true; }

  void synchronise() override;

  bool synchronised() const override { return synchronised_; }

  std::unique_ptr<PlaneMemory> allocate(std::size_t bytes, bool sparse) override;

  std::size_t width() const override { return cpu_.width(); }

  void reserve(const ReduceLimits& limits) override { cpu_.reserve(limits); }

  void stage(const StageRows& work) override { on_queue(), cpu_.stage(work); }

  void gather(const GatherRows& work) override { on_queue(), cpu_.gather(work); }

  void point(const ArrivedRows& work, const std::byte** pointers) override {
    on_queue(), cpu_.point(work, pointers);
  }

  void encode(const EncodeRows& work) override { on_queue(), cpu_.encode(work); }

  void reduce(const ReduceRows& work) override { on_queue(), cpu_.reduce(work); }

  /// Runs experts' work behind everything submitted so far, with the addresses that the queue uses.
  void run(const ExpertRows& rows, std::function<void(const ExpertRows&)> work);

 protected:
  void enqueue(std::function<void()>&& step) override;

 private:
  class Memory;

  void on_queue() const;
  void loop();
  template <class T>
  T* as_queue_sees(T* seen) const;

  CpuPlane cpu_;
  const Start start_;
  std::vector<Memory*> memories_;  // changed and opened on the caller's thread
  bool synchronised_ = true;       // the caller's view

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> steps_;
  bool running_ = false;  // the queue may take steps
  bool busy_ = false;     // it has taken one
  bool stop_ = false;
  std::exception_ptr failure_;
  std::thread thread_;
};

}  // namespace ferry
