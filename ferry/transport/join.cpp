#include "ferry/join.h"

#include <exception>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/transport/registry.h"
#include "ferry/transport/roll_call.h"

namespace ferry {

namespace {

using Kind = TransportError::Kind;

void check(const JoinOptions& options) {
  if (options.size < 1 || options.rank < 0 || options.rank >= options.size) {
    fail<ConfigError>("rank {} of {} ranks cannot be; ranks count from 0 to one less than the size",
                      options.rank,
                      options.size);
  }
  if (options.ranks_per_host < 0)
    fail<ConfigError>("ranks_per_host must be at least 0, not {}", options.ranks_per_host);
}

/// Nobody returns before all can: from here on a death is the transport's to notice. The second
/// meeting is for those who join again under the same names: what was said before is gone by then.
void arrive(Transport& transport, RollCall& roll_call, Deadline deadline) {
  if (transport.size() == 1) return;
  const Deadline patient = deadline == kNoDeadline ? deadline : deadline + kVerdictMargin;
  try {
    roll_call.report();
    if (transport.barrier(patient) == WaitResult::timed_out) roll_call.fail_about_missing();
    if (transport.rank() == 0) roll_call.forget();
  } catch (const TransportError& e) {
    transport.abort(e.what());  // else the others would hear only that this rank gave up
    throw;
  }
  if (meet_again(transport, patient) == WaitResult::reached) return;
  fail_joining(transport.rank(), Kind::timeout, -1, "the ranks came, but were not ready in time");
}

}  // namespace

std::unique_ptr<Transport> join(const JoinOptions& options, Store& store) {
  const TransportEntry& entry = find_transport(options.transport);
  check(options);
  const Deadline deadline = deadline_in(options.join_timeout);
  PrefixStore keys(store, fmt::format("ferry/{}/{}/", options.group, options.epoch));
  RollCall roll_call(options, keys, deadline);
  try {
    const std::unique_ptr<Joiner> joiner = entry.joiner(options);
    const std::vector<Bytes> cards = roll_call.gather(joiner->card());
    auto transport = joiner->join(cards, deadline);
    arrive(*transport, roll_call, deadline);
    return transport;
  } catch (const TransportError& e) {
    const TransportError cause = roll_call.cause(e);
    roll_call.give_up(cause);
    if (std::string_view(cause.what()).starts_with("rank ")) throw cause;
    fail_joining(options.rank, cause.kind(), cause.peer(), cause.what());
  } catch (const std::exception& e) {
    roll_call.give_up({TransportError::Kind::aborted,
                       options.rank,
                       fmt::format("rank {} gave up: {}", options.rank, e.what())});
    throw;
  }
}

JoinOptions join_options(const World& world, std::string transport) {
  if (world.own != 1) {
    fail<ConfigError>("WORLD_LOCAL_SIZE={} ranks of one process cannot join; start each by itself",
                      world.own);
  }
  return {.transport = std::move(transport),
          .rank = world.rank,
          .size = world.size,
          .node = world.node,
          .host = world.master_host};
}

}  // namespace ferry
