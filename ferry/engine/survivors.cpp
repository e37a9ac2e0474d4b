#include "ferry/engine/survivors.h"

namespace ferry {

Survivors::Survivors(Decoder& decoder, Transport& transport, bool go_on)
    : decoder_(decoder), transport_(transport), go_on_(go_on) {
  FERRY_CHECK(static_cast<std::size_t>(transport.size()) <= gone_.size(),
              "{} ranks, at most {}",
              transport.size(),
              gone_.size());
}

bool Survivors::lose_after(const TransportError& error) {
  const Rank rank = error.peer();
  const bool about_a_rank = error.kind() != TransportError::Kind::io && rank > 0;
  if (!go_on_ || !about_a_rank || rank == transport_.rank() || !lives(rank)) return false;
  lose(rank);
  return true;
}

void Survivors::lose(Rank rank) {
  gone_.set(static_cast<std::size_t>(rank));
  decoder_.sparse_layers().mask(rank);
}

void Survivors::lose(const RankSet& ranks) {
  for (Rank r = 0; r < transport_.size(); ++r) {
    if (!ranks.test(static_cast<std::size_t>(r)) || !lives(r)) continue;
    if (r == 0 || r == transport_.rank()) {
      throw TransportError(TransportError::Kind::aborted,
                           r,
                           r == 0
                               ? "rank 0, which plans the steps, is gone"
                               : "the others went on without this rank, which answered too late");
    }
    lose(r);
  }
}

void Survivors::look() {
  if (!go_on_) return;
  RankSet masked;
  for (Rank r = 0; r < transport_.size(); ++r)
    masked.set(static_cast<std::size_t>(r), decoder_.sparse_layers().is_masked(r));
  lose(masked);
}

}  // namespace ferry
