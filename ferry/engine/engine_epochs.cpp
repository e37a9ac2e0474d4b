// How an engine gets from the ranks of one epoch to those of the next. All that has to do with
// other ranks (Members) ends with its epoch. What stays are rank 0's plan and each rank's
// sequences, and these two may have been cut apart in the middle of a step: settle() brings them
// together again.
#include <algorithm>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/engine/engine_impl.h"

namespace ferry {

namespace {

/// Epochs that may end in a row without a step that comes to its end: then something else is wrong
/// than a rank that is gone.
constexpr int kMostFailures = 16;

}  // namespace

void Engine::Impl::follow(Epochs& epochs, bool comes_late) {
  if (tp_ > 1) fail<ConfigError>("ranks cannot come and go in groups of {} (--tp)", tp_);
  if (options_.hash_logits)
    fail<ConfigError>("logits cannot be hashed where ranks come and go: nobody has all of them");
  epochs_ = &epochs;
  if (comes_late)
    entering_ = Epoch{.decoder = &members_->decoder, .transport = &members_->transport};
}

void Engine::Impl::run(const OnToken& on_token) {
  for (;;) {
    std::optional<TransportError> error;
    try {
      if (entering_) {
        enter_epoch();
        settle(on_token);
        entering_.reset();
      }
      After after = After::step;
      while (after == After::step) after = run_step(on_token);
      if (after == After::stop) return;
    } catch (const TransportError& e) {
      const TransportError told(e.kind(), e.peer(), fmt::format("step {}: {}", step_, e.what()));
      if (!may_go_on(e)) throw told;
      error = told;
      ++failures_;
    }
    if (!next_epoch(error, on_token)) return;
  }
}

bool Engine::Impl::wants_next_epoch() {
  return epochs_ && epochs_->wants_next(members_->survivors.gone());
}

/// Not where the others have gone on without this rank, nor where rank 0 is gone.
bool Engine::Impl::may_go_on(const TransportError& error) const {
  if (!epochs_ || failures_ >= kMostFailures || error.peer() == rank_) return false;
  if (error.kind() == TransportError::Kind::io) return error.peer() >= 0;
  return error.kind() != TransportError::Kind::peer_died || error.peer() != 0;
}

/// False where it takes place without this rank.
bool Engine::Impl::next_epoch(const std::optional<TransportError>& error, const OnToken& on_token) {
  deliver(on_token);  // what came before the end
  EpochEnd end{.gone = {}, .error = error};
  if (members_) end.gone = members_->survivors.gone();
  const std::size_t known_lost = members_ ? members_->lost : 0;
  leave_epoch();
  std::optional<Epoch> next = epochs_->next(end);
  if (!next) return false;
  sequences_.move_to(*next->decoder);
  rank_ = next->transport->rank();
  ranks_ = next->transport->size();
  if (leads()) regroup(*next, known_lost);
  entering_ = std::move(next);
  return true;
}

void Engine::Impl::leave_epoch() {
  if (!members_) return;
  const SparseLayers& layers = members_->decoder.sparse_layers();
  const ExchangeStats exchanged = layers.exchange_stats();
  stats_.exchange_bytes += exchanged.bytes_wire;
  stats_.exchange_network_bytes += exchanged.bytes_network;
  stats_.exchange_time += layers.exchange_time();
  members_.reset();
}

void Engine::Impl::enter_epoch() {
  if (!members_)
    members_.emplace(options_, record_bytes(), *entering_->decoder, *entering_->transport);
}

/// On rank 0, as soon as it knows who is in the next epoch: whatever becomes of that one, the one
/// behind it is told by these ranks.
void Engine::Impl::regroup(const Epoch& epoch, std::size_t known_lost) {
  if (records_.empty()) {  // nothing has been planned yet
    records_ = batcher_.plan_next_epoch();
    taken_.assign(records_.size(), true);
  }
  const std::uint64_t step = records_.front().step;
  std::vector<StepRecord> records;
  std::vector<bool> taken;
  std::size_t newcomers = 0;
  for (const Rank old : epoch.from) {
    if (old < 0) {
      records.push_back({.step = step, .next_epoch = true});
      taken.push_back(true);
      ++newcomers;
      continue;
    }
    records.push_back(std::move(records_[static_cast<std::size_t>(old)]));
    records.back().gone = {};
    records.back().moves = {};
    taken.push_back(taken_[static_cast<std::size_t>(old)]);
  }
  records_ = std::move(records);
  taken_ = std::move(taken);
  const std::size_t restarts = batcher_.regroup(epoch.from);
  inbox_.set_max_live(most_live());
  stats_.restarts += restarts;
  const std::size_t lost = epoch.lost - std::min(epoch.lost, known_lost);
  stats_.ranks_lost += lost;
  stats_.epoch = epoch.number;
  if (!options_.warn) return;
  options_.warn(fmt::format("epoch {}: {} rank{}, {} of them new; {} lost, {} sequences start over",
                            epoch.number,
                            ranks_,
                            ranks_ == 1 ? "" : "s",
                            newcomers,
                            lost,
                            restarts));
}

/// The step that was planned last comes to its end, also where the last epoch ended within it. Rank
/// 0 sends its records once more. A rank that has run it says again what it gave, and rank 0 takes
/// what it has not heard yet. Any other rank carries out the record's orders, unless it has, but
/// runs no token: its tokens are planned again. Several epochs may end in here; nothing is done
/// twice.
void Engine::Impl::settle(const OnToken& on_token) {
  StepLink& link = members_->link;
  if (leads())
    for (Rank r = 0; r < ranks_; ++r) link.send_record(r, records_[static_cast<std::size_t>(r)]);
  StepRecord record = link.receive_record();
  step_ = record.step;
  StepResult own{.step = step_, .lost = true, .tokens = {}};
  if (answered_ && answered_->step == step_)
    own = *answered_;
  else if (runs_step(record))
    sequences_.apply(record);
  link.send_result(own);
  if (leads()) {
    for (Rank r = 0; r < ranks_; ++r)
      take_result(r, link.receive_result(r, step_, options_.timeout));
    deliver(on_token);
  }
  ++step_;
}

}  // namespace ferry
