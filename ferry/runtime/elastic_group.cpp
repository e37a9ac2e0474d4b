#include "ferry/runtime/elastic_group.h"

#include <algorithm>
#include <exception>
#include <thread>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/transport/registry.h"

namespace ferry {

namespace {

using Clock = std::chrono::steady_clock;
using Kind = TransportError::Kind;

/// How often one boundary may be called again, since somebody has died at it.
constexpr int kMostTries = 8;
constexpr std::chrono::milliseconds kLook{2};
/// For a member that another one holds to be dead: it may be wrong.
constexpr std::chrono::seconds kDoubt{1};

bool holds(const std::vector<std::string>& names, const std::string& name) {
  return std::ranges::find(names, name) != names.end();
}

Membership member_of(const ElasticOptions& options, Store& store) {
  return options.founder ? Membership::found(options.join, store)
                         : Membership::announce(options.join, store);
}

/// What a newcomer will hold if it is taken in next. Where that turns out otherwise, the boundary
/// reads what is missing.
ExpertWeights foreseen_experts(const Model& model,
                               const ElasticOptions& options,
                               Store& store,
                               ThreadPool& pool) {
  if (options.founder) return {};
  const std::optional<int> size = MemberBoard::size_with_next(store, options.join.group);
  if (!size || *size < 1 || *size > GroupSize::kMost) return {};
  return model.experts_of(*size - 1, *size, pool);
}

}  // namespace

void GroupSize::want(int ranks) {
  if (ranks < 1 || ranks > kMost)
    fail<ConfigError>("a group of {} ranks is not possible; it has 1 to {}", ranks, kMost);
  const std::lock_guard lock(mutex_);
  state_.wanted = ranks;
}

GroupSize::State GroupSize::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

int GroupSize::wanted() const {
  const std::lock_guard lock(mutex_);
  return state_.wanted;
}

void GroupSize::set_members(std::uint64_t epoch, const std::vector<std::string>& members) {
  const std::lock_guard lock(mutex_);
  state_.epoch = epoch;
  state_.members = members;
}

void GroupSize::set_waiting(const std::vector<std::string>& waiting) {
  const std::lock_guard lock(mutex_);
  state_.waiting = waiting;
}

ElasticGroup::ElasticGroup(const Model& model, const ElasticOptions& options, Store& store)
    : model_(model),
      options_(options),
      pool_(model.options().threads),
      dense_(model.load_dense()),
      held_(foreseen_experts(model, options, store, pool_)),
      membership_(member_of(options, store)),
      board_(store, options.join.group, membership_.name()),
      size_(options.join.size) {
  membership_.watch([this](const std::string& name) { return board_.has_left(name); });
}

std::optional<Epoch> ElasticGroup::first() {
  try {
    transport_ = membership_.next();
    if (!transport_) return std::nullopt;
    make_decoder();
  } catch (const TransportError&) {
    // A group that has not been can end; a newcomer to one has been asked for.
    if (options_.founder || membership_.tried() == 0) throw;
    return next({});
  }
  return hand_out();
}

bool ElasticGroup::wants_next(const RankSet& gone) {
  if (gone.any()) return true;
  if (Clock::now() >= next_look_) {
    next_look_ = Clock::now() + options_.look_every;
    waiting_ = look_for_newcomers();
    size_.set_waiting(waiting_);
    tell_size_with_next();
  }
  const int wanted = size_.wanted();
  const int members = static_cast<int>(membership_.members().size());
  return members > wanted || (members < wanted && !waiting_.empty());
}

/// A newcomer gets the rank behind all others. A full group takes one only when a member has gone.
void ElasticGroup::tell_size_with_next() {
  const int members = static_cast<int>(membership_.members().size());
  const int size = std::max(1, std::min(members + 1, size_.wanted()));
  if (std::exchange(told_size_, size) != size) board_.tell_size_with_next(size);
}

std::vector<std::string> ElasticGroup::look_for_newcomers() {
  std::vector<std::string> names = membership_.newcomers();
  std::erase_if(names, [this](const std::string& name) {
    return refused_.contains(name) || board_.has_left(name);
  });
  return names;
}

std::optional<Epoch> ElasticGroup::next(const EpochEnd& end) {
  leave_last(end);
  while (!decoder_) {
    transport_ = meet();
    if (!transport_ && board_.is_dismissed()) return std::nullopt;
    if (!transport_) {
      throw TransportError(Kind::aborted,
                           -1,
                           fmt::format("{}: the others went on without this rank, which came too "
                                       "late; start it again",
                                       membership_.name()));
    }
    try {
      make_decoder();
    } catch (const TransportError& e) {
      leave_last({.gone = {}, .error = e});
    }
  }
  return hand_out();
}

/// What outlives the epoch is taken out of it. Its transport ends before the next one begins, so
/// that it sees off what it still has to send.
void ElasticGroup::leave_last(const EpochEnd& end) {
  const std::vector<std::string>& members = membership_.members();
  const bool one_died = end.error && end.error->kind() == Kind::peer_died;
  dead_.clear();
  for (std::size_t r = 0; r < members.size(); ++r)
    if (end.gone.test(r) || (one_died && std::cmp_equal(end.error->peer(), r)))
      dead_.push_back(members[r]);
  if (transport_ && end.error) transport_->abort(end.error->what());
  if (decoder_) held_ = decoder_->sparse_layers().take_experts();
  decoder_.reset();
  transport_.reset();
}

/// Where a rank dies meanwhile it throws, and what this one had of experts is read again for the
/// epoch behind this one.
void ElasticGroup::make_decoder() {
  if (options_.through) transport_ = options_.through(std::move(transport_));
  decoder_.reset(
      new Decoder(model_.next_decoder_on(*transport_, pool_, std::exchange(held_, {}), dense_)));
}

Epoch ElasticGroup::hand_out() {
  const std::vector<std::string>& members = membership_.members();
  Epoch epoch{.number = membership_.epoch(), .decoder = &*decoder_, .transport = transport_.get()};
  for (const std::string& name : members) {
    const auto old = std::ranges::find(handed_out_, name);
    epoch.from.push_back(old == handed_out_.end() ? -1
                                                  : static_cast<Rank>(old - handed_out_.begin()));
  }
  for (const std::string& name : handed_out_)
    if (!holds(members, name) && !dismissed_.contains(name)) ++epoch.lost;
  handed_out_ = members;
  party_ = members;
  size_.set_members(epoch.number, members);
  if (leads()) tell_size_with_next();
  return epoch;
}

/// All that are to be in the next epoch, once they are; null where that is made without this rank.
std::unique_ptr<Transport> ElasticGroup::meet() {
  for (int tries = 1;; ++tries) {
    const std::uint64_t tried = membership_.tried();
    board_.come(tried, dead_);
    if (leads()) call_members();
    try {
      return membership_.next();
    } catch (const TransportError& e) {
      const bool leader_is_gone = !leads() && e.peer() == 0 && e.kind() != Kind::timeout;
      if (leader_is_gone || tries == kMostTries || membership_.tried() == tried) throw;
      if (leads()) blame(e);
    }
  }
}

/// The leader: waits for everybody who can still come, and says who is in the next epoch.
void ElasticGroup::call_members() {
  const Clock::time_point begin = Clock::now();
  const Clock::time_point end = begin + options_.join.join_timeout / 2;
  const std::uint64_t tried = membership_.tried();
  std::set<std::string> came{membership_.name()};
  std::set<std::string> doubted(dead_.begin(), dead_.end());
  const auto is_settled = [&](const std::string& name) {
    if (came.contains(name)) return true;
    if (const auto dead = board_.word_of(name, tried)) {
      came.insert(name);
      doubted.insert(dead->begin(), dead->end());
      return true;
    }
    return board_.has_left(name) || (doubted.contains(name) && Clock::now() > begin + kDoubt);
  };
  while (Clock::now() < end && !std::ranges::all_of(party_, is_settled))
    std::this_thread::sleep_for(kLook);
  board_.forget(party_, tried);
  choose_members(came);
}

void ElasticGroup::choose_members(const std::set<std::string>& came) {
  const std::vector<std::string>& last = membership_.members();
  const auto wanted = static_cast<std::size_t>(size_.wanted());
  std::vector<Rank> survivors;
  std::vector<std::string> newcomers;
  std::vector<std::string> next;
  for (const std::string& name : party_) {
    if (!came.contains(name)) continue;
    if (next.size() >= wanted) {
      dismissed_.insert(name);
      board_.dismiss(name);
      continue;
    }
    next.push_back(name);
    const auto rank = std::ranges::find(last, name);
    if (rank == last.end())
      newcomers.push_back(name);  // of an epoch that was not made
    else
      survivors.push_back(static_cast<Rank>(rank - last.begin()));
  }
  waiting_ = look_for_newcomers();
  for (const std::string& name : waiting_) {
    if (next.size() >= wanted) break;
    if (holds(next, name)) continue;
    next.push_back(name);
    newcomers.push_back(name);
  }
  std::erase_if(waiting_, [&](const std::string& name) { return holds(next, name); });
  size_.set_waiting(waiting_);
  membership_.publish(survivors, newcomers);
  party_ = next;
}

/// An epoch could not be made. A newcomer that is to blame is not asked again; a member that did
/// not come will not come to the next boundary either.
void ElasticGroup::blame(const TransportError& error) {
  const auto about = static_cast<std::size_t>(error.peer());
  const bool known = error.peer() >= 0 && about < party_.size();
  const auto is_new = [this](const std::string& name) {
    return !holds(membership_.members(), name);
  };
  std::set<std::string> refused;
  for (std::size_t r = 0; r < party_.size(); ++r)
    if (is_new(party_[r]) && (!known || r == about)) refused.insert(party_[r]);
  std::erase_if(party_, [&](const std::string& name) { return refused.contains(name); });
  refused_.merge(refused);
}

void ElasticGroup::give_up(const std::string& why) noexcept {
  try {
    if (transport_) transport_->abort(why);
    board_.leave();
  } catch (const std::exception&) {
    // The store has ended, and with it the group.
  }
}

int run_elastic(const Model& model,
                const ElasticOptions& options,
                Store& store,
                const std::function<int(Engine&, GroupSize&)>& lead) {
  ElasticGroup group(model, options, store);
  try {
    std::optional<Epoch> epoch = group.first();
    while (epoch) {
      std::unique_ptr<Engine> engine;
      try {
        engine.reset(new Engine(options.founder
                                    ? model.engine_on(*epoch->decoder, *epoch->transport)
                                    : model.late_engine_on(*epoch->decoder, *epoch->transport)));
      } catch (const TransportError& e) {
        if (options.founder) throw;
        epoch = group.next({.gone = {}, .error = e});
        continue;
      }
      engine->follow(group, !options.founder);
      if (options.founder && options.join.rank == 0) return lead(*engine, group.size());
      engine->run({});
      return 0;
    }
    return 0;
  } catch (...) {
    group.give_up(describe(std::current_exception()));
    throw;
  }
}

}  // namespace ferry
