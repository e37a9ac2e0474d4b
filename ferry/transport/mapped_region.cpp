// Regions of a MappedTransport: made together, in shared memory or over the caller's.
#include "ferry/transport/mapped_region.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/transport/contract.h"
#include "ferry/transport/split.h"

namespace ferry {

namespace {

constexpr std::size_t kSignalBytes = 64;  // a cache line each: several ranks raise them at once

std::size_t pages(std::size_t bytes) {
  const auto page = static_cast<std::int64_t>(sysconf(_SC_PAGESIZE));
  return static_cast<std::size_t>(round_up(static_cast<std::int64_t>(bytes), page));
}

}  // namespace

PartLayout::PartLayout(std::size_t bytes, int num_signals, int senders)
    : signals_at(pages(bytes)),
      mail_at(signals_at + pages(static_cast<std::size_t>(num_signals) * kSignalBytes)),
      stride(mail_at + pages(static_cast<std::size_t>(senders) * sizeof(MailQueue))) {}

MappedRegion::MappedRegion(MappedTransport* owner, Options options)
    : Region(options.local, options.num_signals), owner_(owner), options_(std::move(options)) {
  if (is_shadowed()) owner_->mailboxes_.push_back(this);
}

MappedRegion::~MappedRegion() {
  if (is_shadowed()) std::erase(owner_->mailboxes_, this);
}

std::atomic_ref<std::uint64_t> MappedRegion::signal(Rank rank, int index) const {
  std::byte* p =
      part(rank) + options_.layout.signals_at + static_cast<std::size_t>(index) * kSignalBytes;
  return std::atomic_ref<std::uint64_t>(*reinterpret_cast<std::uint64_t*>(p));
}

// --- Mail ----------------------------------------------------------------------------------------

/// Valid when zeroed, as all regions start.
MailQueue& MappedRegion::queue(Rank from, Rank to) const {
  std::byte* mail = part(to) + options_.layout.mail_at;
  return reinterpret_cast<MailQueue*>(mail)[from];
}

bool MappedRegion::try_post(Rank to, const MailQueue::Entry& entry) {
  MailQueue& mail = queue(owner_->rank(), to);
  const std::uint64_t written = mail.written.load(std::memory_order_relaxed);
  if (written - mail.read.load(std::memory_order_acquire) >= MailQueue::kEntries) return false;
  mail.entries[written % MailQueue::kEntries] = entry;
  mail.written.store(written + 1);  // also releases the bytes; ring() looks for sleepers after it
  owner_->ring(to);
  return true;
}

void MappedRegion::post(const Put& put) {
  std::memcpy(peer(put.peer) + put.offset, put.source.data(), put.source.size());
  const MailQueue::Entry entry{.offset = put.offset,
                               .bytes = put.source.size(),
                               .signal = static_cast<std::uint32_t>(put.signal),
                               .add = put.add};
  push_backlog();
  if (!backlog_.empty() || !try_post(put.peer, entry)) backlog_.push_back({put.peer, entry});
}

void MappedRegion::push_backlog() {
  std::erase_if(backlog_, [&](const Held& held) { return try_post(held.peer, held.entry); });
}

void MappedRegion::deliver(const MailQueue::Entry& entry) {
  const std::span<std::byte> own = local();
  if (entry.offset > own.size() || entry.bytes > own.size() - entry.offset ||
      entry.signal >= static_cast<std::uint32_t>(num_signals()))
    throw TransportError(TransportError::Kind::io, -1, "shm: a peer put outside its region");
  std::memcpy(own.data() + entry.offset, peer(owner_->rank()) + entry.offset, entry.bytes);
  signal(owner_->rank(), static_cast<int>(entry.signal)).fetch_add(entry.add);
}

void MappedRegion::deliver() {
  push_backlog();
  for (Rank from = 0; from < owner_->size(); ++from) {
    if (from == owner_->rank()) continue;
    MailQueue& mail = queue(from, owner_->rank());
    std::uint64_t read = mail.read.load(std::memory_order_relaxed);
    for (const std::uint64_t written = mail.written.load(); read != written; ++read) {
      deliver(mail.entries[read % MailQueue::kEntries]);
      mail.read.store(read + 1, std::memory_order_release);
    }
  }
}

void MappedTransport::deliver() {
  for (MappedRegion* region : mailboxes_) region->deliver();
}

// --- Making regions ------------------------------------------------------------------------------

void MappedTransport::enter_together(const char* call) {
  if (barrier(deadline_in(start_timeout_)) == WaitResult::reached) return;
  Rank missing = 0;
  while (missing < size_ - 1 && control_->ranks[missing].arrived.load() >= barriers_) ++missing;
  throw late_error({name_, call, rank_}, missing, start_timeout_);
}

void MappedTransport::compare_requests() {
  std::vector<RegionRequest> requests;
  for (Rank r = 0; r < size_; ++r) requests.push_back(control_->ranks[r].request);
  check_requests(name_, rank_, requests);
  // Read here, since a rank that is through may begin the next region at once.
  registered_at_.clear();
  for (Rank r = 0; r < size_; ++r) registered_at_.push_back(control_->ranks[r].memory);
}

/// Memory of `bytes` that all ranks have, once all have asked for the same.
std::shared_ptr<RegionMemory> MappedTransport::share_memory(const char* call,
                                                            const RegionRequest& request,
                                                            std::size_t bytes) {
  FERRY_CHECK(masked_.none(), "{}: {} in a group with masked ranks", name_, call);
  control_->ranks[rank_].request = request;  // the barrier below publishes it
  std::shared_ptr<RegionMemory> memory;
  try {
    if (rank_ == 0) memory = create_memory(bytes);
    enter_together(call);
    compare_requests();
    if (rank_ != 0) memory = attach_memory(bytes);
    // Until all have it, rank 0 keeps what it made, and nobody changes its request.
    enter_together(call);
  } catch (const BrokenContract&) {
    throw;  // every rank finds the same difference
  } catch (const std::exception& e) {
    abort(e.what());
    throw;
  }
  return memory;
}

std::unique_ptr<Region> MappedTransport::allocate_region(std::size_t bytes, int num_signals) {
  check_allocation(bytes, num_signals, size_);
  const PartLayout layout(bytes, num_signals, 0);
  auto memory = share_memory("allocate_region",
                             {.bytes = bytes, .signals = static_cast<std::uint64_t>(num_signals)},
                             layout.stride * static_cast<std::size_t>(size_));
  std::vector<std::byte*> parts;
  for (std::size_t r = 0; r < static_cast<std::size_t>(size_); ++r)
    parts.push_back(memory->base() + r * layout.stride);
  const std::span<std::byte> local(parts[static_cast<std::size_t>(rank_)], bytes);
  return std::make_unique<MappedRegion>(this,
                                        MappedRegion::Options{.memory = std::move(memory),
                                                              .layout = layout,
                                                              .parts = std::move(parts),
                                                              .local = local,
                                                              .num_signals = num_signals});
}

std::unique_ptr<Region> MappedTransport::register_region(std::span<std::byte> local,
                                                         int num_signals) {
  check_allocation(local.size(), num_signals, size_);
  const PartLayout layout(shared_ ? local.size() : 0, num_signals, shared_ ? size_ : 0);
  control_->ranks[rank_].memory = reinterpret_cast<std::uintptr_t>(local.data());
  auto memory = share_memory(
      "register_region",
      {.bytes = local.size(), .signals = static_cast<std::uint64_t>(num_signals), .registered = 1},
      layout.stride * static_cast<std::size_t>(size_));
  std::vector<std::byte*> parts;
  for (std::size_t r = 0; r < static_cast<std::size_t>(size_); ++r) {
    if (shared_) {
      parts.push_back(memory->base() + r * layout.stride);
    } else {
      // NOLINTNEXTLINE(performance-no-int-to-ptr): zeroed shared memory holds numbers
      parts.push_back(reinterpret_cast<std::byte*>(registered_at_[r]));
    }
  }
  return std::make_unique<MappedRegion>(this,
                                        MappedRegion::Options{.memory = std::move(memory),
                                                              .layout = layout,
                                                              .parts = std::move(parts),
                                                              .local = local,
                                                              .num_signals = num_signals,
                                                              .shadowed = shared_});
}

std::unique_ptr<Transport> MappedTransport::split(int color, int key) {
  return split_group(*this, join_, color, key);
}

}  // namespace ferry
