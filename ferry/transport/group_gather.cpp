#include "ferry/transport/group_gather.h"

#include <algorithm>
#include <cstring>

#include "ferry/core/error.h"

namespace ferry {

namespace {

// Bytes worth handing to another thread: well above the cost of waking it.
constexpr std::int64_t kCopyGrainBytes = 1 << 16;
constexpr std::size_t kLineBytes = 64;

std::size_t whole_lines(std::size_t bytes) {
  return (bytes + kLineBytes - 1) / kLineBytes * kLineBytes;
}

std::string described(const GatherPhase& phase) {
  return phase.layer < 0 ? fmt::format("gather of {}", phase.name)
                         : fmt::format("gather of {} (layer {})", phase.name, phase.layer);
}

/// Runs a call of the transport; what it throws says what this rank was doing.
template <class Call>
auto in_context(const GatherPhase& phase, Call call) {
  try {
    return call();
  } catch (const TransportError& e) {
    throw TransportError(e.kind(), e.peer(), fmt::format("{}: {}", described(phase), e.what()));
  }
}

}  // namespace

GroupGather::GroupGather(const Options& options, Transport& transport, ThreadPool& pool)
    : options_(options),
      transport_(transport),
      pool_(pool),
      member_(transport.rank() % std::max(1, options.tp)),
      pull_(transport.capabilities().load_store),
      slab_bytes_(whole_lines(std::max(options.max_row_bytes, kSlabBytes))) {
  FERRY_CHECK(options.tp >= 1, "a group of {} ranks", options.tp);
  if (transport.size() % options.tp != 0) {
    fail<ConfigError>(
        "{} ranks do not make groups of {} (--tp must divide --ep)", transport.size(), options.tp);
  }
  if (options.tp == 1) return;
  const auto tp = static_cast<std::size_t>(options.tp);
  region_ = transport.allocate_region(2 * slab_bytes_ * (pull_ ? 1 : tp), 2 * options.tp);
  expected_.resize(2 * tp);
}

void GroupGather::gather(const MutableRowsView& rows,
                         std::int64_t count,
                         std::span<const std::int64_t> bounds,
                         const GatherPhase& phase) {
  FERRY_CHECK(std::ssize(bounds) == options_.tp + 1 && std::ranges::is_sorted(bounds),
              "{} bounds for {} members",
              bounds.size(),
              options_.tp);
  if (options_.tp == 1) return;
  std::int64_t widest = 1;
  for (std::size_t m = 0; m + 1 < bounds.size(); ++m)
    widest = std::max(widest, bounds[m + 1] - bounds[m]);
  const std::int64_t at_once = static_cast<std::int64_t>(slab_bytes_) / widest;
  FERRY_CHECK(at_once >= 1, "rows of {} bytes, slabs of {}", widest, slab_bytes_);
  for (std::int64_t first = 0; first < count; first += at_once)
    gather_round(rows.from(first), std::min(at_once, count - first), bounds, phase);
}

void GroupGather::gather_round(const MutableRowsView& rows,
                               std::int64_t count,
                               std::span<const std::int64_t> bounds,
                               const GatherPhase& phase) {
  const auto begin_of = [&](int m) { return bounds[static_cast<std::size_t>(m)]; };
  const auto width_of = [&](int m) { return begin_of(m + 1) - begin_of(m); };
  const auto columns_of = [&](int m) {
    return MutableRowsView{rows.base + begin_of(m), rows.stride};
  };
  const std::int64_t own = width_of(member_);
  const MutableRowsView own_columns = columns_of(member_);
  copy_columns({region_->local().data() + slab_offset(member_), own},
               {own_columns.base, own_columns.stride},
               count,
               own);
  send(static_cast<std::size_t>(count * own), phase);
  for (int step = 1; step < options_.tp; ++step) {
    const int from = (member_ + step) % options_.tp;
    const std::int64_t width = width_of(from);
    await(from, static_cast<std::size_t>(count * width), phase);
    const std::span<const std::byte> memory =
        pull_ ? transport_.peer_window(*region_, rank_of(from)) : region_->local();
    copy_columns(columns_of(from), {memory.data() + slab_offset(from), width}, count, width);
  }
  ++rounds_;
}

/// Tells all others of this rank's slab; without peer windows it goes with the news.
void GroupGather::send(std::size_t bytes, const GatherPhase& phase) {
  const std::size_t at = slab_offset(member_);
  const std::size_t most = transport_.capabilities().max_put_bytes;
  for (int step = 1; step < options_.tp; ++step) {
    const int to = (member_ + step) % options_.tp;
    std::size_t done = 0;
    do {
      const std::size_t piece = pull_ ? 0 : std::min(most, bytes - done);
      in_context(phase, [&] {
        transport_.put({.region = region_.get(),
                        .peer = rank_of(to),
                        .offset = at + done,
                        .source = region_->local().subspan(at + done, piece),
                        .signal = signal_of(member_)});
      });
      done += piece;
    } while (!pull_ && done < bytes);
  }
}

void GroupGather::await(int from, std::size_t bytes, const GatherPhase& phase) {
  const int signal = signal_of(from);
  std::uint64_t& expected = expected_[static_cast<std::size_t>(signal)];
  expected += puts_for(bytes);
  const WaitResult result = in_context(phase, [&] {
    return transport_.wait(*region_, signal, expected, deadline_in(options_.timeout));
  });
  if (result == WaitResult::reached) return;
  throw TransportError(
      TransportError::Kind::timeout,
      rank_of(from),
      fmt::format("{}: rank {} waited {} s for rank {}: expected {} messages, saw {}; that rank "
                  "hangs or is slow (raise --timeout)",
                  described(phase),
                  transport_.rank(),
                  std::chrono::duration<double>(options_.timeout).count(),
                  rank_of(from),
                  expected,
                  transport_.signal_value(*region_, signal)));
}

void GroupGather::copy_columns(const MutableRowsView& to,
                               const RowsView& from,
                               std::int64_t count,
                               std::int64_t bytes) {
  if (bytes == 0) return;
  const std::int64_t grain = std::max<std::int64_t>(1, kCopyGrainBytes / bytes);
  pool_.parallel_for(count, grain, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = begin; i < end; ++i)
      std::memcpy(to.row(i), from.row(i), static_cast<std::size_t>(bytes));
  });
}

std::size_t GroupGather::slab_offset(int member) const {
  const auto slab = pull_ ? buffer() : buffer() * options_.tp + member;
  return static_cast<std::size_t>(slab) * slab_bytes_;
}

/// One signal at least: also a member without columns is waited for, which is what frees slabs.
std::uint64_t GroupGather::puts_for(std::size_t bytes) const {
  if (pull_ || bytes == 0) return 1;
  const std::size_t most = transport_.capabilities().max_put_bytes;
  return bytes / most + (bytes % most == 0 ? 0 : 1);
}

}  // namespace ferry
