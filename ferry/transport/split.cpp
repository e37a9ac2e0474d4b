#include "ferry/transport/split.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/transport/gather_words.h"
#include "ferry/transport/registry.h"
#include "ferry/transport/roll_call.h"

namespace ferry {

namespace {

using Kind = TransportError::Kind;

/// Every rank gives `own` and gets what all gave.
std::vector<Bytes> gather_bytes(const Bytes& own,
                                std::chrono::nanoseconds timeout,
                                Transport& transport) {
  constexpr std::string_view kWhat = "way to be found in a new group";
  const std::vector<std::uint64_t> length{own.size()};
  const auto lengths = gather_words(length, kWhat, timeout, transport);
  const std::uint64_t longest = *std::ranges::max_element(lengths);
  std::vector<std::uint64_t> words(longest / sizeof(std::uint64_t) + 1);
  std::ranges::copy(own, std::as_writable_bytes(std::span(words)).begin());
  const auto all = gather_words(words, kWhat, timeout, transport);
  std::vector<Bytes> each;
  for (std::size_t r = 0; r < lengths.size(); ++r) {
    const auto bytes = std::as_bytes(std::span(all).subspan(r * words.size(), words.size()));
    each.emplace_back(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(lengths[r]));
  }
  return each;
}

/// Ranks of the parent with this color, in the order of their keys and then of their ranks.
std::vector<Rank> ranks_of(int color, std::span<const std::uint64_t> colors_and_keys) {
  std::vector<std::pair<int, Rank>> found;
  for (std::size_t r = 0; r < colors_and_keys.size() / 2; ++r) {
    if (static_cast<int>(colors_and_keys[2 * r]) == color)
      found.emplace_back(static_cast<int>(colors_and_keys[2 * r + 1]), static_cast<Rank>(r));
  }
  std::ranges::sort(found);
  std::vector<Rank> ranks;
  for (const auto& [key, rank] : found) ranks.push_back(rank);
  return ranks;
}

}  // namespace

std::unique_ptr<Transport> split_group(Transport& parent,
                                       const JoinOptions& own,
                                       int color,
                                       int key) {
  const std::vector<std::uint64_t> choice{static_cast<std::uint64_t>(color),
                                          static_cast<std::uint64_t>(key)};
  const auto choices = gather_words(choice, "color", own.start_timeout, parent);
  if (color < 0) {
    gather_bytes({}, own.start_timeout, parent);
    return nullptr;
  }
  const std::vector<Rank> members = ranks_of(color, choices);
  JoinOptions options = own;
  options.rank = static_cast<Rank>(std::ranges::find(members, parent.rank()) - members.begin());
  options.size = static_cast<int>(members.size());
  options.group = fmt::format("{}/{}", own.group, color);
  options.agreement = {};
  // A rank that cannot take part says so by an empty card, so that the others need not wait for it.
  std::unique_ptr<Joiner> joiner;
  Bytes card;
  std::exception_ptr failure;
  try {
    joiner = find_transport(parent.name()).joiner(options);
    card = joiner->card();
  } catch (const std::exception&) {
    failure = std::current_exception();
  }
  const std::vector<Bytes> all_cards = gather_bytes(card, own.start_timeout, parent);
  if (failure) std::rethrow_exception(failure);
  std::vector<Bytes> cards;
  for (const Rank member : members) {
    cards.push_back(all_cards[static_cast<std::size_t>(member)]);
    if (!cards.back().empty()) continue;
    throw TransportError(Kind::aborted,
                         member,
                         fmt::format("split: rank {} cannot take part in a new group", member));
  }
  const Deadline deadline = deadline_in(own.start_timeout);
  auto transport = joiner->join(cards, deadline);
  if (transport->barrier(deadline) == WaitResult::timed_out ||
      meet_again(*transport, deadline) == WaitResult::timed_out) {
    throw TransportError(
        Kind::timeout,
        -1,
        fmt::format(
            "split: not all {} ranks of color {} were ready in time", members.size(), color));
  }
  return transport;
}

}  // namespace ferry
