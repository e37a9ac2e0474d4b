#include "ferry/transport/inproc.h"

#include <algorithm>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "ferry/core/buffer.h"
#include "ferry/core/error.h"
#include "ferry/transport/mapped.h"
#include "ferry/transport/registry.h"

namespace ferry {

namespace {

class HeapMemory final : public RegionMemory {
 public:
  explicit HeapMemory(std::size_t bytes) : buffer_(bytes, Buffer::Use::sparse) {}

  std::byte* base() const override { return buffer_.data(); }

 private:
  Buffer buffer_;
};

struct InprocGroup {
  ControlBlock control;
  // What rank 0 made for the allocate_region that is under way; its barriers order the accesses.
  std::weak_ptr<RegionMemory> offered;
};

class InprocTransport final : public MappedTransport {
 public:
  InprocTransport(std::shared_ptr<InprocGroup> group,
                  Rank rank,
                  int size,
                  std::chrono::nanoseconds start_timeout)
      : MappedTransport({.name = "inproc",
                         .control = std::shared_ptr<ControlBlock>(group, &group->control),
                         .rank = rank,
                         .size = size,
                         .start_timeout = start_timeout}),
        group_(std::move(group)) {}

 protected:
  std::shared_ptr<RegionMemory> create_memory(std::size_t bytes) override {
    auto memory = std::make_shared<HeapMemory>(bytes);
    group_->offered = memory;
    return memory;
  }

  std::shared_ptr<RegionMemory> attach_memory(std::size_t) override {
    return group_->offered.lock();
  }

  bool has_ended(Rank) override { return false; }  // a thread cannot die alone

 private:
  std::shared_ptr<InprocGroup> group_;  // owned by the ends of all ranks
};

/// Rank 0 runs on the calling thread, so a group of one starts no thread.
int run_inproc(const LaunchOptions& options, const RankBody& body) {
  auto ends = make_inproc(options.ranks, options.start_timeout);
  std::vector<int> statuses(ends.size(), 0);
  std::exception_ptr first_failure;
  std::once_flag failed;
  const auto run_rank = [&](std::size_t r) {
    try {
      statuses[r] = body(*ends[r]);
    } catch (...) {
      // Before the abort, which makes the other ranks fail too.
      std::call_once(failed, [&] { first_failure = std::current_exception(); });
      ends[r]->abort(describe(std::current_exception()));
    }
    ends[r].reset();
  };
  {
    std::vector<std::jthread> threads;
    try {
      for (std::size_t r = 1; r < ends.size(); ++r) threads.emplace_back(run_rank, r);
    } catch (const std::system_error& e) {
      ends[0]->abort("a rank's thread could not be started");
      fail<ConfigError>(
          "inproc: cannot start {} threads: {}; use fewer ranks", ends.size() - 1, e.what());
    }
    run_rank(0);
  }
  if (first_failure) std::rethrow_exception(first_failure);
  return *std::max_element(statuses.begin(), statuses.end());
}

}  // namespace

std::vector<std::unique_ptr<Transport>> make_inproc(int ranks,
                                                    std::chrono::nanoseconds start_timeout) {
  FERRY_CHECK(ranks >= 1 && ranks <= kMaxMappedRanks, "{} ranks, 1 to {}", ranks, kMaxMappedRanks);
  const auto group = std::make_shared<InprocGroup>();
  std::vector<std::unique_ptr<Transport>> ends;
  ends.reserve(static_cast<std::size_t>(ranks));
  for (Rank r = 0; r < ranks; ++r) {
    ends.push_back(std::make_unique<InprocTransport>(group, r, ranks, start_timeout));
  }
  return ends;
}

TransportEntry inproc_transport() {
  return {.name = "inproc",
          .about = "ranks are threads of one process",
          .why_not = []() -> std::string_view { return ""; },
          .run = run_inproc,
          .load_store = true};
}

}  // namespace ferry
