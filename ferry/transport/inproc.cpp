#include "ferry/inproc.h"

#include <algorithm>
#include <exception>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "ferry/buffer.h"
#include "ferry/core/error.h"
#include "ferry/transport/host_memory.h"
#include "ferry/transport/mapped.h"
#include "ferry/transport/processes.h"
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

/// Groups that ranks are about to join, by a number that rank 0 gives them. A group is here as long
/// as one of its ends lives.
class GroupTable {
 public:
  static GroupTable& instance() {
    static GroupTable table;
    return table;
  }

  std::uint64_t add(const std::shared_ptr<InprocGroup>& group) {
    const std::lock_guard guard(lock_);
    std::erase_if(groups_, [](const auto& known) { return known.second.expired(); });
    groups_.emplace(++last_, group);
    return last_;
  }

  std::shared_ptr<InprocGroup> find(std::uint64_t number) {
    const std::lock_guard guard(lock_);
    const auto found = groups_.find(number);
    return found == groups_.end() ? nullptr : found->second.lock();
  }

 private:
  std::mutex lock_;
  std::map<std::uint64_t, std::weak_ptr<InprocGroup>> groups_;
  std::uint64_t last_ = 0;
};

class InprocTransport final : public MappedTransport {
 public:
  InprocTransport(std::shared_ptr<InprocGroup> group, const JoinOptions& join)
      : MappedTransport({.name = "inproc",
                         .control = std::shared_ptr<ControlBlock>(group, &group->control),
                         .join = join}),
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

class InprocJoiner final : public Joiner {
 public:
  explicit InprocJoiner(const JoinOptions& options) : options_(options) {
    if (options.size > kMaxMappedRanks) {
      fail<ConfigError>(
          "inproc: {} ranks asked for; it has at most {}", options.size, kMaxMappedRanks);
    }
  }

  Bytes card() override {
    ByteWriter writer;
    writer.text(this_host()).number(this_process());
    if (options_.rank == 0) {
      group_ = std::make_shared<InprocGroup>();
      writer.number(GroupTable::instance().add(group_));
    }
    return writer.bytes();
  }

  std::unique_ptr<Transport> join(std::span<const Bytes> cards, Deadline) override {
    ByteReader first(cards.front());
    const std::string host = first.text();
    const auto process = first.number<ProcessId>();
    const auto number = first.number<std::uint64_t>();
    for (std::size_t r = 1; r < cards.size(); ++r) {
      ByteReader reader(cards[r]);
      if (reader.text() == host && reader.number<ProcessId>() == process) continue;
      throw TransportError(
          TransportError::Kind::io,
          static_cast<Rank>(r),
          fmt::format("inproc: rank {} is in another process than rank 0; ranks of inproc are "
                      "threads of one process, use shm or fabric",
                      r));
    }
    if (group_ == nullptr) group_ = GroupTable::instance().find(number);
    if (group_ == nullptr)
      throw TransportError(TransportError::Kind::aborted, 0, "inproc: rank 0 has given up");
    return std::make_unique<InprocTransport>(group_, options_);
  }

 private:
  const JoinOptions options_;
  std::shared_ptr<InprocGroup> group_;
};

/// Rank 0 runs on the calling thread, so a group of one starts no thread.
int run_inproc(const LaunchOptions& options, const RankBody& body) {
  LocalStore store;
  std::vector<int> statuses(static_cast<std::size_t>(options.ranks), 0);
  std::exception_ptr first_failure;
  std::once_flag failed;
  const auto run_rank = [&](Rank rank) {
    const auto note = [&] {
      // Before the abort, which makes the other ranks fail too.
      std::call_once(failed, [&] { first_failure = std::current_exception(); });
    };
    try {
      const auto transport = join(join_options(options, rank), store);
      try {
        statuses[static_cast<std::size_t>(rank)] = body(*transport);
      } catch (...) {
        note();
        transport->abort(describe(std::current_exception()));
      }
    } catch (...) {
      note();
      store.close(rank, describe(std::current_exception()));
    }
  };
  {
    std::vector<std::jthread> threads;
    try {
      for (Rank r = 1; r < options.ranks; ++r) threads.emplace_back(run_rank, r);
    } catch (const std::system_error& e) {
      store.close(0, "a rank's thread could not be started");
      fail<ConfigError>(
          "inproc: cannot start {} threads: {}; use fewer ranks", options.ranks - 1, e.what());
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
    ends.push_back(std::make_unique<InprocTransport>(
        group,
        JoinOptions{
            .transport = "inproc", .rank = r, .size = ranks, .start_timeout = start_timeout}));
  }
  return ends;
}

TransportEntry inproc_transport() {
  return {.name = "inproc",
          .about = "ranks are threads of one process",
          .why_not = []() -> std::string_view { return ""; },
          .joiner = [](const JoinOptions& options) -> std::unique_ptr<Joiner> {
            return std::make_unique<InprocJoiner>(options);
          },
          .run = run_inproc,
          .load_store = true};
}

}  // namespace ferry
