// Which ranks somebody else has started (mpirun, srun, torchrun, a script), read from the variables
// that they set.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "ferry/export.h"
#include "ferry/types.h"

namespace ferry {

/// Where this process stands among ranks that were started from outside.
struct World {
  enum class Launcher { variables, slurm, open_mpi, mpich };

  Launcher launcher = Launcher::variables;
  int size = 1;
  Rank rank = 0;            ///< of this process; the first of its ranks where it has several
  int own = 1;              ///< ranks that this process has to start itself (WORLD_LOCAL_SIZE)
  std::string node;         ///< name or number of the host as the launcher knows it; may be empty
  std::string master_host;  ///< where rank 0 listens; empty where the launcher does not say
  int master_port = 0;
  std::string secret;  ///< FERRY_TOKEN
};

/// Reads RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT (torchrun); NODE_RANK and
/// WORLD_LOCAL_SIZE (one process a host, which starts that host's ranks); else what Open MPI's and
/// MPICH's mpirun, or Slurm's srun, set. MASTER_ADDR and MASTER_PORT count with all of them.
/// `variable(name)` is the value or null, as std::getenv. Nothing when none of them started us.
/// Throws ConfigError that names the variable, what is allowed and what was found.
FERRY_API std::optional<World> find_world(const std::function<const char*(const char*)>& variable);

/// The same from this process's environment.
FERRY_API std::optional<World> find_world();

/// The first host of a list as Slurm writes it: "n[03-05,9],m1" -> "n03".
FERRY_API std::string first_host(const std::string& nodelist);

}  // namespace ferry
