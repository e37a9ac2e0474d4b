#include "ferry/engine/exchange_waits.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

namespace ferry {

ExchangeWaits::ExchangeWaits(int ranks)
    : ranks_(ranks), counted_(static_cast<std::size_t>(ranks) * static_cast<std::size_t>(ranks)) {}

void ExchangeWaits::take(Rank rank, std::span<const SourceStats> sources) {
  if (sources.size() != static_cast<std::size_t>(ranks_)) return;
  std::ranges::copy(sources, counted_.begin() + std::ptrdiff_t{rank} * ranks_);
}

double ExchangeWaits::in_window(Rank rank, Rank source) const {
  const auto at = static_cast<std::size_t>(rank) * static_cast<std::size_t>(ranks_) +
                  static_cast<std::size_t>(source);
  return static_cast<double>(counted_[at].wait_ns() - begun_[at].wait_ns()) * 1e-9;
}

ExchangeWaits::Waited ExchangeWaits::waited_for(Rank source, const RankSet& gone) const {
  Waited waited;
  int others = 0;
  for (Rank rank = 0; rank < ranks_; ++rank) {
    if (rank == source || gone.test(static_cast<std::size_t>(rank))) continue;
    ++others;
    waited.seconds += in_window(rank, source);
    for (Rank other = 0; other < ranks_; ++other)
      waited.longest_of_all &= gone.test(static_cast<std::size_t>(other)) ||
                               in_window(rank, other) <= in_window(rank, source);
  }
  if (others > 0) waited.seconds /= others;
  return waited;
}

std::optional<std::string> ExchangeWaits::look(Clock::time_point now, const RankSet& gone) {
  if (!begin_) {
    begin_ = now;
    begun_ = counted_;
    return {};
  }
  if (now - *begin_ < kWindow) return {};
  const double window = std::chrono::duration<double>(now - *begin_).count();
  Rank longest = -1;
  Waited most;
  double next = 0;
  for (Rank source = 0; source < ranks_; ++source) {
    if (gone.test(static_cast<std::size_t>(source))) continue;
    const Waited waited = waited_for(source, gone);
    if (longest >= 0 && waited.seconds <= most.seconds) {
      next = std::max(next, waited.seconds);
      continue;
    }
    next = std::max(next, most.seconds);
    longest = source;
    most = waited;
  }
  begin_ = now;
  begun_ = counted_;
  const bool named = longest >= 0 && most.longest_of_all && most.seconds >= kNamedShare * window &&
                     most.seconds >= kNamedLead * next;
  const Rank before = std::exchange(straggler_, named ? longest : -1);
  if (straggler_ == before) return {};
  if (straggler_ < 0) return fmt::format("the others no longer wait for rank {}", before);
  return fmt::format(
      "rank {} makes the others wait: each waited for it {:.1f} of the last {:.0f} s on average, "
      "and at most {:.1f} s for any other; look at its cores, its host and its links",
      straggler_,
      most.seconds,
      window,
      next);
}

}  // namespace ferry
