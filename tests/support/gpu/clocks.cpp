#include "support/gpu/clocks.h"

#include <algorithm>
#include <tuple>

namespace ferry::testing::gpu {

namespace {

auto place_of(const BlockClocks& clocks) {
  return std::tie(clocks.host, clocks.number, clocks.block);
}

bool covers(const BlockClocks& a, const BlockClocks& b) {
  return a.all >= b.all &&
         std::all_of(b.but.begin(),
                     b.but.end(),
                     [&](const ThreadClock& t) { return a.of(t.thread) >= t.clock; }) &&
         std::all_of(a.but.begin(), a.but.end(), [&](const ThreadClock& t) {
           return t.clock >= b.of(t.thread);
         });
}

bool covers(const Clocks& a, const Clocks& b) {
  for (std::size_t host = 0; host < b.hosts.size(); ++host) {
    if (b.hosts[host] > 0 && !a.knows_whole(static_cast<std::uint32_t>(host), b.hosts[host])) {
      return false;
    }
  }
  return std::all_of(b.blocks.begin(), b.blocks.end(), [&](const BlockClocks& theirs) {
    if (a.knows_whole(theirs.host, theirs.number)) return true;
    const BlockClocks* const ours = a.find(theirs.host, theirs.number, theirs.block);
    return ours != nullptr && covers(*ours, theirs);
  });
}

BlockClocks both(const BlockClocks& a, const BlockClocks& b) {
  BlockClocks joined = {
      .host = a.host, .number = a.number, .block = a.block, .all = std::max(a.all, b.all)};
  const auto add = [&](std::uint32_t thread) {
    const std::uint32_t clock = std::max(a.of(thread), b.of(thread));
    if (clock != joined.all) joined.but.push_back({.thread = thread, .clock = clock});
  };
  auto ours = a.but.begin();
  auto theirs = b.but.begin();
  while (ours != a.but.end() || theirs != b.but.end()) {
    if (theirs == b.but.end() || (ours != a.but.end() && ours->thread < theirs->thread)) {
      add((ours++)->thread);
    } else {
      if (ours != a.but.end() && ours->thread == theirs->thread) ++ours;
      add((theirs++)->thread);
    }
  }
  return joined;
}

Clocks both(const Clocks& a, const Clocks& b) {
  Clocks joined;
  joined.hosts.resize(std::max(a.hosts.size(), b.hosts.size()));
  for (std::size_t host = 0; host < joined.hosts.size(); ++host) {
    joined.hosts[host] = std::max(host < a.hosts.size() ? a.hosts[host] : 0,
                                  host < b.hosts.size() ? b.hosts[host] : 0);
  }
  const auto add = [&](BlockClocks clocks) {
    if (!joined.knows_whole(clocks.host, clocks.number)) joined.blocks.push_back(std::move(clocks));
  };
  auto ours = a.blocks.begin();
  auto theirs = b.blocks.begin();
  while (ours != a.blocks.end() || theirs != b.blocks.end()) {
    if (theirs == b.blocks.end() ||
        (ours != a.blocks.end() && place_of(*ours) < place_of(*theirs))) {
      add(*ours++);
    } else if (ours == a.blocks.end() || place_of(*theirs) < place_of(*ours)) {
      add(*theirs++);
    } else {
      add(both(*ours++, *theirs++));
    }
  }
  return joined;
}

}  // namespace

std::uint32_t BlockClocks::of(std::uint32_t thread) const {
  const auto found = std::lower_bound(
      but.begin(), but.end(), thread, [](const ThreadClock& entry, std::uint32_t wanted) {
        return entry.thread < wanted;
      });
  return found != but.end() && found->thread == thread ? found->clock : all;
}

void BlockClocks::set(std::uint32_t thread, std::uint32_t clock) {
  const auto found = std::lower_bound(
      but.begin(), but.end(), thread, [](const ThreadClock& entry, std::uint32_t wanted) {
        return entry.thread < wanted;
      });
  if (found != but.end() && found->thread == thread) {
    found->clock = clock;
  } else {
    but.insert(found, {.thread = thread, .clock = clock});
  }
}

const BlockClocks* Clocks::find(std::uint32_t host,
                                std::uint32_t number,
                                std::uint32_t block) const {
  const auto wanted = std::tie(host, number, block);
  const auto found =
      std::lower_bound(blocks.begin(), blocks.end(), wanted, [](const auto& entry, const auto& at) {
        return place_of(entry) < at;
      });
  return found != blocks.end() && place_of(*found) == wanted ? &*found : nullptr;
}

BlockClocks& Clocks::at(std::uint32_t host, std::uint32_t number, std::uint32_t block) {
  const auto wanted = std::tie(host, number, block);
  auto found =
      std::lower_bound(blocks.begin(), blocks.end(), wanted, [](const auto& entry, const auto& at) {
        return place_of(entry) < at;
      });
  if (found == blocks.end() || place_of(*found) != wanted) {
    found = blocks.insert(found, {.host = host, .number = number, .block = block});
  }
  return *found;
}

void Clocks::know_whole(std::uint32_t host, std::uint32_t number) {
  if (hosts.size() <= host) hosts.resize(host + 1);
  hosts[host] = std::max(hosts[host], number);
  std::erase_if(blocks, [&](const BlockClocks& b) { return knows_whole(b.host, b.number); });
}

void ClockJoiner::join(ClocksPtr& into, const ClocksPtr& other) {
  if (other == nullptr || into == other) return;
  if (into == nullptr) {
    into = other;
    return;
  }
  if (into != a_ || other != b_) {
    a_ = into;
    b_ = other;
    joined_ = covers(*into, *other)   ? into
              : covers(*other, *into) ? other
                                      : std::make_shared<const Clocks>(both(*into, *other));
  }
  into = joined_;
}

}  // namespace ferry::testing::gpu
