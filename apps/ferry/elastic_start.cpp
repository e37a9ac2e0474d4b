#include "apps/ferry/elastic_start.h"

#include <string>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr const char* kFounders = "ferry/elastic/founders";

void check_goes_with_elastic(const RunOptions& run) {
  if (run.launch.ranks != run.elastic->size) {
    fail<ConfigError>("{} ranks asked for (--ep), but the group begins with {} (WORLD_SIZE)",
                      run.launch.ranks,
                      run.elastic->size);
  }
  if (run.decoder.tp > 1)
    fail<ConfigError>("--elastic: ranks come and go one by one, not in groups of --tp {}",
                      run.decoder.tp);
  if (run.expert_location.init != "trivial") {
    fail<ConfigError>(
        "--elastic: {} places experts for one number of ranks; leave out --init-expert-location",
        run.expert_location.init);
  }
  if (run.launch.transport != "shm" && run.launch.transport != "fabric")
    fail<ConfigError>("--elastic: use --transport shm or fabric, not {}", run.launch.transport);
}

/// How many ranks the group begins with, as rank 0 says.
int founders_of(Store& store, const RunOptions& run) {
  if (run.elastic->rank == 0) {
    store.set_text(kFounders, std::to_string(run.elastic->size));
    return run.elastic->size;
  }
  const auto said = store.wait(kFounders, deadline_in(run.launch.join_timeout));
  if (!said) {
    throw TransportError(
        TransportError::Kind::timeout,
        0,
        "rank 0 serves a store, but does not begin an elastic group; start it with "
        "--elastic too");
  }
  return std::stoi(std::string(reinterpret_cast<const char*>(said->data()), said->size()));
}

}  // namespace

ElasticStart start_elastic(RunOptions& run) {
  check_goes_with_elastic(run);
  const World& world = *run.elastic;
  TcpStoreOptions options = store_options(world);
  options.timeout = run.launch.join_timeout;
  ElasticStart start{.store = std::make_unique<TcpStore>(options), .options = {}};
  run.launch.ranks = founders_of(*start.store, run);
  const bool founder = world.rank < run.launch.ranks &&
                       start.store->add("ferry/elastic/rank/" + std::to_string(world.rank), 1) == 1;
  start.options = {.join = join_options(world, run.launch.transport), .founder = founder};
  JoinOptions& join = start.options.join;
  join.size = run.launch.ranks;
  join.join_timeout = run.launch.join_timeout;
  join.start_timeout = run.launch.start_timeout;
  join.ranks_per_host = run.launch.ranks_per_host;
  join.fabric_provider = run.launch.fabric_provider;
  join.fabric_rails = run.launch.fabric_rails;
  join.fabric_progress_thread = run.launch.fabric_progress_thread;
  return start;
}

}  // namespace ferry
