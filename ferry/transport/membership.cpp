#include "ferry/membership.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/transport/byte_stream.h"
#include "ferry/transport/store_values.h"

namespace ferry {

namespace {

using Kind = TransportError::Kind;

/// In the store: newcomers (how many have come), newcomer/<number> and invited/<name> (which epoch
/// first), epoch/<number> (names in order of rank).
constexpr const char* kNewcomers = "newcomers";

std::string names_text(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

Bytes bytes_of(const std::vector<std::string>& names) {
  ByteWriter writer;
  for (const std::string& name : names) writer.text(name);
  return writer.bytes();
}

std::vector<std::string> read_names(const Store::Value& value) {
  std::vector<std::string> names;
  for (ByteReader reader(value); !reader.done();) names.push_back(reader.text());
  return names;
}

}  // namespace

std::string Membership::key(const std::string& what) const {
  return fmt::format("ferry/{}/members/{}", options_.group, what);
}

Membership Membership::found(const JoinOptions& options, Store& store) {
  Membership founder(options, store, fmt::format("founder {}", options.rank));
  for (Rank r = 0; r < options.size; ++r) founder.members_.push_back(fmt::format("founder {}", r));
  founder.epoch_ = options.epoch;
  founder.tried_ = options.epoch;
  founder.is_founder_ = true;
  return founder;
}

Membership Membership::announce(const JoinOptions& options, Store& store) {
  Membership newcomer(options, store, "");
  const std::int64_t number = store.add(newcomer.key(kNewcomers), 1);
  newcomer.name_ = fmt::format("newcomer {}", number);
  newcomer.is_invited_ = false;
  store.set_text(newcomer.key(fmt::format("newcomer/{}", number)), newcomer.name_);
  return newcomer;
}

std::vector<std::string> Membership::newcomers() {
  std::vector<std::string> names;
  const std::int64_t count = store_->add(key(kNewcomers), 0);
  for (std::int64_t number = 1; number <= count; ++number) {
    // Some may have ended between taking a number and saying their name.
    const auto name = store_->get(key(fmt::format("newcomer/{}", number)));
    if (name && !store_->get(key("invited/" + text_of(*name)))) names.push_back(text_of(*name));
  }
  return names;
}

void Membership::publish(std::span<const Rank> survivors, std::span<const std::string> newcomers) {
  std::vector<std::string> names;
  for (const Rank rank : survivors) {
    if (rank < 0 || static_cast<std::size_t>(rank) >= members_.size()) {
      fail<ConfigError>("rank {} cannot be in the next epoch: epoch {} has {} ranks",
                        rank,
                        epoch_,
                        members_.size());
    }
    names.push_back(members_[static_cast<std::size_t>(rank)]);
  }
  names.insert(names.end(), newcomers.begin(), newcomers.end());
  std::vector<std::string> sorted = names;
  std::ranges::sort(sorted);
  if (const auto twice = std::ranges::adjacent_find(sorted); twice != sorted.end())
    fail<ConfigError>("{} stands twice among the members of the next epoch", *twice);
  if (!std::ranges::binary_search(sorted, name_)) {
    fail<ConfigError>(
        "{} leads, so it must be a member of the next epoch ({} are)", name_, names_text(names));
  }
  published_ = std::max(published_, tried_) + 1;
  store_->set(key(fmt::format("epoch/{}", published_)), bytes_of(names));
  for (const std::string& name : newcomers)
    store_->set_text(key("invited/" + name), std::to_string(published_));
}

/// Of the epoch after `tried_`, which becomes that one.
std::vector<std::string> Membership::wait_for_members() {
  const Deadline deadline = deadline_in(options_.join_timeout);
  const auto late = [&](const std::string& what) {
    throw TransportError(Kind::timeout,
                         -1,
                         fmt::format("{}: {} within {:.1f} s",
                                     name_,
                                     what,
                                     std::chrono::duration<double>(options_.join_timeout).count()));
  };
  try {
    if (!is_invited_) {
      const auto epoch = store_->wait(key("invited/" + name_), deadline);
      if (!epoch) late(fmt::format("nobody took it into group {}", options_.group));
      tried_ = std::stoull(text_of(*epoch)) - 1;
      is_invited_ = true;
    }
    const auto names = store_->wait(key(fmt::format("epoch/{}", tried_ + 1)), deadline);
    if (!names) late(fmt::format("nobody said who is in epoch {}", tried_ + 1));
    ++tried_;
    return read_names(*names);
  } catch (const std::logic_error&) {
    throw Error(fmt::format("{}: what the store says of its epoch is no number", name_));
  }
}

std::unique_ptr<Transport> Membership::next() {
  const std::vector<std::string> names =
      std::exchange(is_founder_, false) ? members_ : wait_for_members();
  const auto own = std::ranges::find(names, name_);
  if (own == names.end()) return nullptr;
  JoinOptions options = options_;
  options.rank = static_cast<Rank>(own - names.begin());
  options.size = static_cast<int>(names.size());
  options.epoch = tried_;
  if (has_left_) {
    options.has_left = [&](Rank rank) { return has_left_(names[static_cast<std::size_t>(rank)]); };
  }
  options.agreement.emplace_back("the members of the epoch", names_text(names));
  try {
    auto transport = join(options, *store_);
    epoch_ = tried_;
    members_ = names;
    return transport;
  } catch (const TransportError& e) {
    const auto about = static_cast<std::size_t>(e.peer());
    if (e.peer() < 0 || about >= names.size()) throw;
    throw TransportError(
        e.kind(),
        e.peer(),
        fmt::format(
            "{} (epoch {}, where rank {} is {})", e.what(), tried_, e.peer(), names[about]));
  }
}

}  // namespace ferry
