#include "ferry/world.h"

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr int kMaxWorld = 1 << 16;
constexpr int kMaxPort = 65535;
/// Ports for launchers that name a job but no port; below those the kernel hands out.
constexpr int kFirstJobPort = 20000;
constexpr int kJobPorts = 10000;

using Variable = std::function<const char*(const char*)>;

const char* set_value(const Variable& variable, const char* name) {
  const char* value = variable(name);
  return value != nullptr && *value != '\0' ? value : nullptr;
}

int number(const Variable& variable, const char* name, int low, int high) {
  const char* text = set_value(variable, name);
  if (text == nullptr) fail<ConfigError>("{} is not set; expected {} to {}", name, low, high);
  int value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc() || stop != end || value < low || value > high) {
    fail<ConfigError>("{}={}: expected a number from {} to {}", name, text, low, high);
  }
  return value;
}

std::string text_or_empty(const Variable& variable, const char* name) {
  const char* value = set_value(variable, name);
  return value == nullptr ? std::string() : std::string(value);
}

/// The same port on every host of a job, different ones for most jobs.
int job_port(const std::string& job) {
  return kFirstJobPort + static_cast<int>(std::hash<std::string>()(job) % kJobPorts);
}

void read_rank(const Variable& variable, const char* rank, const char* size, World& world) {
  world.size = number(variable, size, 1, kMaxWorld);
  world.rank = number(variable, rank, 0, world.size - 1);
}

std::optional<World> started_world(const Variable& variable) {
  World world;
  const auto has = [&](const char* name) { return set_value(variable, name) != nullptr; };
  if (has("RANK") && has("WORLD_SIZE")) {
    read_rank(variable, "RANK", "WORLD_SIZE", world);
    world.node = text_or_empty(variable, "GROUP_RANK");
    if (world.node.empty() && has("LOCAL_RANK")) {
      // A host's ranks stand in a row: its first one names it.
      const int local = number(variable, "LOCAL_RANK", 0, world.rank);
      world.node = fmt::format("of rank {}", world.rank - local);
    }
  } else if (has("NODE_RANK") && has("WORLD_LOCAL_SIZE")) {
    world.own = number(variable, "WORLD_LOCAL_SIZE", 1, kMaxWorld);
    world.size = number(variable, "WORLD_SIZE", world.own, kMaxWorld);
    if (world.size % world.own != 0) {
      fail<ConfigError>(
          "WORLD_SIZE={} is not a multiple of WORLD_LOCAL_SIZE={}", world.size, world.own);
    }
    world.rank = number(variable, "NODE_RANK", 0, world.size / world.own - 1) * world.own;
    world.node = text_or_empty(variable, "NODE_RANK");
  } else if (has("OMPI_COMM_WORLD_SIZE")) {
    world.launcher = World::Launcher::open_mpi;
    read_rank(variable, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", world);
    // One host, as far as mpirun says: no name needs to be known.
    if (text_or_empty(variable, "OMPI_COMM_WORLD_LOCAL_SIZE") ==
        text_or_empty(variable, "OMPI_COMM_WORLD_SIZE")) {
      world.master_host = "127.0.0.1";
    }
    world.master_port = job_port(text_or_empty(variable, "PMIX_NAMESPACE"));
  } else if (has("PMI_RANK") && has("PMI_SIZE")) {
    world.launcher = World::Launcher::mpich;
    read_rank(variable, "PMI_RANK", "PMI_SIZE", world);
  } else if (has("SLURM_PROCID") && has("SLURM_STEP_NUM_TASKS")) {
    world.launcher = World::Launcher::slurm;
    read_rank(variable, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", world);
    world.node = text_or_empty(variable, "SLURM_NODEID");
    world.master_host = first_host(text_or_empty(variable, "SLURM_STEP_NODELIST"));
    world.master_port = job_port(text_or_empty(variable, "SLURM_JOB_ID") + "." +
                                 text_or_empty(variable, "SLURM_STEP_ID"));
  } else {
    return std::nullopt;
  }
  return world;
}

}  // namespace

std::string first_host(const std::string& nodelist) {
  const auto bracket = nodelist.find('[');
  const auto comma = nodelist.find(',');
  if (bracket == std::string::npos || comma < bracket) return nodelist.substr(0, comma);
  const auto end = nodelist.find_first_of("-,]", bracket + 1);
  return nodelist.substr(0, bracket) + nodelist.substr(bracket + 1, end - bracket - 1);
}

std::optional<World> find_world(const Variable& variable) {
  std::optional<World> world = started_world(variable);
  if (!world) return world;
  if (const char* host = set_value(variable, "MASTER_ADDR")) world->master_host = host;
  if (set_value(variable, "MASTER_PORT") != nullptr) {
    world->master_port = number(variable, "MASTER_PORT", 1, kMaxPort);
    // torchrun's own store listens there already; all ranks know that and take the next one.
    if (text_or_empty(variable, "TORCHELASTIC_USE_AGENT_STORE") == "True") ++world->master_port;
  }
  world->secret = text_or_empty(variable, "FERRY_TOKEN");
  return world;
}

std::optional<World> find_world() {
  return find_world([](const char* name) { return std::getenv(name); });
}

}  // namespace ferry
