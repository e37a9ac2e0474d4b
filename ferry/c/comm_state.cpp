#include "ferry/c/comm_state.h"

#include <algorithm>

namespace ferry::c {

OnComm::OnComm(Comm& comm) : comm_(comm) { comm_.children_.push_back(this); }

OnComm::~OnComm() { std::erase(comm_.children_, this); }

Comm::Turn::Turn(Comm& comm) : comm_(comm) {
  if (comm_.in_call_.exchange(true, std::memory_order_acquire)) {
    fail<OutOfOrder>(
        "rank {}: another call on this comm has not returned; one thread at a time may use it",
        comm_.transport_->rank());
  }
}

Comm::Turn::~Turn() { comm_.in_call_.store(false, std::memory_order_release); }

Comm::Comm(std::unique_ptr<Transport> transport, int threads)
    : transport_(std::move(transport)),
      pool_(threads),
      masked_(static_cast<std::size_t>(transport_->size())) {}

Comm::~Comm() {
  if (failure_) transport_->abort(failure_->line);
}

void Comm::check_usable() const {
  if (const std::optional<Failure> before = failure()) throw FailedBefore(*before);
}

void Comm::note_failure(bool invalid_fails) {
  Failure failure = current_failure();
  if (failure.status == FERRY_INVALID && !invalid_fails) return;
  const std::lock_guard lock(failure_mutex_);
  if (!failure_) failure_ = std::move(failure);
}

void Comm::abort(const std::string& reason) {
  {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) failure_ = {FERRY_ABORTED, transport_->rank(), "this rank gave up: " + reason};
  }
  transport_->abort(reason);
}

std::optional<Failure> Comm::failure() const {
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

void Comm::mask(Rank rank) {
  if (rank < 0 || rank >= transport_->size() || rank == transport_->rank()) {
    fail<ConfigError>(
        "rank {} cannot be masked by rank {} of {}", rank, transport_->rank(), transport_->size());
  }
  if (!transport_->capabilities().survives_peer_death) {
    fail<ConfigError>(
        "rank {} cannot be masked: {} ends with its first dead rank", rank, transport_->name());
  }
  transport_->mask(rank);
  for (OnComm* child : children_) child->mask(rank);
  masked_[static_cast<std::size_t>(rank)] = true;
  const std::lock_guard lock(failure_mutex_);
  // What is made on it knows by itself whether it has failed.
  if (failure_ && failure_->rank == rank && failure_->status != FERRY_CALLBACK) failure_.reset();
}

bool Comm::is_masked(Rank rank) const {
  return masked_[static_cast<std::size_t>(rank)] ||
         std::any_of(children_.begin(), children_.end(), [&](const OnComm* child) {
           return child->is_masked(rank);
         });
}

Comm& comm_of(ferry_comm* handle) { return *reinterpret_cast<Comm*>(need(handle, "the comm")); }

}  // namespace ferry::c
