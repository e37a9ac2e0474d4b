// What a MappedTransport knows of a region. For its own .cpp files.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "ferry/transport/mapped.h"

namespace ferry {

/// Part of a rank in a region: data, signals, and the mailbox where there is one, each from a page
/// boundary on.
struct PartLayout {
  PartLayout(std::size_t bytes, int num_signals, int senders);

  std::size_t signals_at;
  std::size_t mail_at;
  std::size_t stride;
};

/// Puts of one sender that wait for their receiver, in shared memory. The sender writes `written`
/// and the entries, the receiver `read`.
struct MailQueue {
  static constexpr std::uint64_t kEntries = 64;

  struct Entry {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
    std::uint32_t signal = 0;
    std::uint32_t add = 0;
  };

  alignas(64) std::atomic<std::uint64_t> written{0};
  alignas(64) std::atomic<std::uint64_t> read{0};
  alignas(64) Entry entries[kEntries];
};

/// A region that lies in memory which all ranks map; or, of processes, over memory that only its
/// owner has. Then every rank has a shadow of it, which all map: a put goes there, with a note in
/// the receiver's mailbox, and the receiver moves the bytes to where they belong and raises the
/// signal.
class MappedRegion final : public Region {
 public:
  struct Options {
    std::shared_ptr<RegionMemory> memory;
    PartLayout layout;
    std::vector<std::byte*> parts;  // [R]: what a put to each rank writes
    std::span<std::byte> local;
    int num_signals = 0;
    bool shadowed = false;
  };

  MappedRegion(MappedTransport* owner, Options options);
  ~MappedRegion() override;
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;

  const MappedTransport* owner() const { return owner_; }

  bool is_shadowed() const { return options_.shadowed; }

  std::byte* peer(Rank rank) const { return options_.parts[static_cast<std::size_t>(rank)]; }

  std::atomic_ref<std::uint64_t> signal(Rank rank, int index) const;

  /// Shadowed: starts a put of some bytes to another rank.
  void post(const Put& put);
  /// Shadowed: puts that found their peer's mailbox full go on.
  void push_backlog();

  bool has_backlog() const { return !backlog_.empty(); }

  /// Shadowed: moves what peers have put here to where it belongs.
  void deliver();

 private:
  struct Held {
    Rank peer;
    MailQueue::Entry entry;
  };

  std::byte* part(Rank rank) const {
    return options_.memory->base() + static_cast<std::size_t>(rank) * options_.layout.stride;
  }

  MailQueue& queue(Rank from, Rank to) const;
  bool try_post(Rank to, const MailQueue::Entry& entry);
  void deliver(const MailQueue::Entry& entry);

  MappedTransport* owner_;
  const Options options_;  // the memory: inproc: one owner per rank; shm: this alone
  std::vector<Held> backlog_;
};

}  // namespace ferry
