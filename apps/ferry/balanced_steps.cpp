#include "apps/ferry/balanced_steps.h"

#include <cstring>

#include "ferry/core/error.h"

namespace ferry {

static_assert(sizeof(MoveOrders) <= kInlineBytes, "a put takes it from anywhere");

BalancedSteps::BalancedSteps(const EngineOptions& options, Decoder& decoder, Transport& transport)
    : transport_(transport), timeout_(options.timeout) {
  if (!options.balance.on()) return;
  balancer_.emplace(options.balance, decoder, transport, options.timeout);
  region_ = transport.allocate_region(sizeof(MoveOrders), 1);
}

void BalancedSteps::run(bool prefill, FunctionRef<void()> step) {
  if (!balancer_) return step();
  const auto begin = std::chrono::steady_clock::now();
  balancer_->begin_step(next_orders());
  step();
  balancer_->end_step();
  if (transport_.rank() == 0) balancer_->take_loads(prefill);
  step_time_ += std::chrono::steady_clock::now() - begin;
}

/// Rank 0's, on every rank. One place for them is enough: rank 0 has the counters of a step from
/// every rank, sent behind its orders, before it gives the next ones.
MoveOrders BalancedSteps::next_orders() {
  if (transport_.rank() == 0) {
    const MoveOrders orders = balancer_->orders();
    for (Rank peer = 0; peer < transport_.size(); ++peer)
      transport_.put({.region = region_.get(),
                      .peer = peer,
                      .source = std::as_bytes(std::span(&orders, 1)),
                      .signal = 0});
  }
  ++steps_;
  if (transport_.wait(*region_, 0, steps_, deadline_in(timeout_)) == WaitResult::timed_out)
    throw TransportError(TransportError::Kind::timeout, 0, "rank 0 gave no orders for a step");
  MoveOrders orders;
  std::memcpy(&orders, region_->local().data(), sizeof orders);
  return orders;
}

}  // namespace ferry
