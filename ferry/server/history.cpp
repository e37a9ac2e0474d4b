#include "ferry/server/history.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace ferry {

namespace {

constexpr double kSmallest = 0.0005;
constexpr int kPerDoubling = 4;

void add(History::Slot& sum, const History::Slot& slot) {
  sum.tokens += slot.tokens;
  sum.refused += slot.refused;
  sum.errors += slot.errors;
  sum.in_flight = std::max(sum.in_flight, slot.in_flight);
  sum.first_token.add(slot.first_token);
  sum.next_token.add(slot.next_token);
  sum.queue.add(slot.queue);
}

}  // namespace

double TimeCounts::edge(std::size_t i) {
  return kSmallest * std::exp2(static_cast<double>(i) / kPerDoubling);
}

void TimeCounts::add(double seconds) {
  const double place =
      std::ceil(kPerDoubling * std::log2(std::max(seconds, kSmallest) / kSmallest));
  ++counts_[std::min(static_cast<std::size_t>(place), counts_.size() - 1)];
}

void TimeCounts::add(const TimeCounts& other) {
  for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
}

double TimeCounts::quantile(double q) const {
  const auto all = std::accumulate(counts_.begin(), counts_.end(), std::uint64_t{0});
  if (all == 0) return 0;
  std::uint64_t below = 0;
  std::size_t i = 0;
  while (i + 1 < kBuckets) {
    below += counts_[i];
    if (static_cast<double>(below) >= q * static_cast<double>(all)) break;
    ++i;
  }
  return edge(i);
}

History::History(std::function<Clock::time_point()> now)
    : now_(std::move(now)), began_(now_()), ring_(kSlots) {}

std::int64_t History::slot_now() const { return (now_() - began_) / kSlot; }

History::Slot& History::current() {
  const std::int64_t now = slot_now();
  newest_ = std::max(newest_, now - kSlots);  // what lies further back is emptied once
  while (newest_ < now) {
    ++newest_;
    ring_[static_cast<std::size_t>(newest_ % kSlots)] = {.in_flight = in_flight_};
  }
  return ring_[static_cast<std::size_t>(newest_ % kSlots)];
}

void History::accepted() {
  const std::lock_guard lock(mutex_);
  Slot& slot = current();
  slot.in_flight = std::max(slot.in_flight, ++in_flight_);
}

void History::ended() {
  const std::lock_guard lock(mutex_);
  current();  // slots in which it was still under way say so
  --in_flight_;
}

void History::token(bool first, double seconds) {
  const std::lock_guard lock(mutex_);
  Slot& slot = current();
  ++slot.tokens;
  (first ? slot.first_token : slot.next_token).add(seconds);
}

void History::queued(double seconds) {
  const std::lock_guard lock(mutex_);
  current().queue.add(seconds);
}

void History::answered(int status) {
  const std::lock_guard lock(mutex_);
  Slot& slot = current();
  slot.refused += status == 429 ? 1 : 0;
  slot.errors += status >= 500 ? 1 : 0;
}

std::vector<History::Slot> History::slots() const { return last(kSlots); }

std::vector<History::Slot> History::last(std::int64_t count) const {
  const std::lock_guard lock(mutex_);
  const std::int64_t now = slot_now();
  std::vector<Slot> all;
  for (std::int64_t n = std::max<std::int64_t>(0, now - count + 1); n <= now; ++n) {
    const bool known = n <= newest_;
    all.push_back(known ? ring_[static_cast<std::size_t>(n % kSlots)]
                        : Slot{.in_flight = in_flight_});
  }
  return all;
}

std::pair<History::Slot, double> History::last_minute() const {
  constexpr std::int64_t kWhole = 6;
  Slot sum;
  for (const Slot& slot : last(kWhole + 1)) add(sum, slot);
  const std::int64_t before = std::max<std::int64_t>(0, slot_now() - kWhole);
  return {sum, std::chrono::duration<double>(now_() - began_ - before * kSlot).count()};
}

}  // namespace ferry
