// The C interface: a rank's place among the others.
//
// Threads: one call at a time on a comm and all that was made on it, from whichever thread; a
// second one is FERRY_OUT_OF_ORDER. What says "any thread" may come at any time. Calls that say
// "collective" are made by all ranks, in the same order and with the same options.
//
// A comm that has failed (any status but FERRY_OK, FERRY_INVALID, FERRY_OUT_OF_ORDER and
// FERRY_REFUSED from a collective call) answers every further one with the same status and line: it
// may be aborted and destroyed, and destroying it tells the others why, so that they do not wait.
#pragma once

#include "ferry/c/base.h"

// NOLINTBEGIN(readability-identifier-naming)
#ifdef __cplusplus
extern "C" {
#endif

typedef struct ferry_comm ferry_comm;

#define FERRY_COMM_OPTIONS_MAGIC 0xFE770001U

/// A name and a value that all ranks must have alike.
typedef struct ferry_pair {
  const char* name;
  const char* value;
} ferry_pair;

typedef struct ferry_comm_options {
  uint32_t size;
  uint32_t magic;
  const char* transport;   ///< "shm" (NULL is this), "inproc" (ranks are threads), "fabric", "mpi"
  int32_t rank;            ///< -1: the launcher's
  int32_t num_ranks;       ///< 0: the launcher's
  int32_t threads;         ///< that compute for this rank, the calling one included
  int32_t ranks_per_host;  ///< fabric, mpi: ranks [h * n, (h + 1) * n) share host h; 0: as they are
  ferry_place place;       ///< where exchanges on it work
  const char* group;       ///< ranks with the same group and epoch meet; NULL: "world"
  uint64_t epoch;          ///< a new number after a creation that failed
  double join_timeout_s;   ///< how long ranks wait for each other to appear
  double start_timeout_s;  ///< how long collective calls that make something wait
  const char* node;      ///< fabric, mpi: this host as the launcher knows it; NULL: the launcher's
  const char* host;      ///< fabric: where rank 0 can be reached; NULL: its addresses are tried
  const char* provider;  ///< fabric: libfabric's; NULL: the best that all ranks have
  int32_t rails;         ///< fabric: interfaces of a rank; 0: as the provider has it
  int32_t progress_thread;      ///< fabric: not 0: data moves while a rank computes
  const ferry_pair* agreement;  ///< what all ranks must have alike
  size_t num_agreement;
} ferry_comm_options;

#define FERRY_COMM_OPTIONS_INIT                                                                \
  {                                                                                            \
    sizeof(ferry_comm_options), FERRY_COMM_OPTIONS_MAGIC, NULL, -1, 0, 1, 0, FERRY_PLACE_HOST, \
        NULL, 0, 30.0, 30.0, NULL, NULL, NULL, 0, 0, NULL, 0                                   \
  }

/// Collective. Ranks that torchrun, mpirun, srun or a shell loop has started: RANK, WORLD_SIZE,
/// MASTER_ADDR, MASTER_PORT, and FERRY_TOKEN where others can reach that address (docs/cluster.md).
/// rank and num_ranks of the options must be those of the launcher, or left.
FERRY_API ferry_status ferry_comm_create_from_launcher(const ferry_comm_options* options,
                                                       ferry_comm** comm);

/// Collective. Rank 0 listens at host:port while the ranks meet, and the others come there.
/// `secret`: the same on all ranks; may be NULL on loopback alone.
FERRY_API ferry_status ferry_comm_create_from_address(const ferry_comm_options* options,
                                                      const char* host,
                                                      int32_t port,
                                                      const char* secret,
                                                      ferry_comm** comm);

/// Where ferry_store::wait puts what it has found.
typedef struct ferry_store_value ferry_store_value;

/// Copies `bytes` bytes into it, over what an earlier call has put there.
FERRY_API ferry_status ferry_store_value_assign(ferry_store_value* value,
                                                const void* data,
                                                size_t bytes);

#define FERRY_STORE_MAGIC 0xFE770002U

/// A store that the caller brings: names with values that all ranks see, such as torch's TCPStore.
/// The functions are called on the thread that creates the comm, and not afterwards. A status other
/// than FERRY_OK, and FERRY_TIMED_OUT from `wait`, makes the creation fail.
typedef struct ferry_store {
  uint32_t size;
  uint32_t magic;
  void* context;
  /// Writes a key, over an older value where there is one.
  ferry_status (*set)(void* context, const char* key, const void* value, size_t bytes);
  /// Assigns the value of a key as soon as somebody has set it. FERRY_TIMED_OUT when timeout_s is
  /// over first: 0 is a look, INFINITY waits for ever.
  ferry_status (*wait)(void* context, const char* key, double timeout_s, ferry_store_value* value);
  /// Forgets a key. May be NULL; then every creation needs a group or epoch of its own.
  ferry_status (*remove)(void* context, const char* key);
} ferry_store;

#define FERRY_STORE_INIT \
  { sizeof(ferry_store), FERRY_STORE_MAGIC, NULL, NULL, NULL, NULL }

/// Collective. Over the caller's store.
FERRY_API ferry_status ferry_comm_create_from_store(const ferry_comm_options* options,
                                                    const ferry_store* store,
                                                    ferry_comm** comm);

/// Collective. A new comm of the ranks that gave the same color, in order of their keys and then of
/// their ranks; a negative color: in none, *out is NULL. Both live on independently.
FERRY_API ferry_status ferry_comm_split(ferry_comm* comm,
                                        int32_t color,
                                        int32_t key,
                                        ferry_comm** out);

/// Leaves the group in good order, or aborts it where the comm has failed. FERRY_OUT_OF_ORDER while
/// something that was made on it is still there. NULL is fine.
FERRY_API ferry_status ferry_comm_destroy(ferry_comm* comm);

/// Any thread. All ranks' calls, this one's too, end with FERRY_ABORTED and this reason.
FERRY_API ferry_status ferry_comm_abort(ferry_comm* comm, const char* reason);

/// Any thread; never blocks. What this comm has failed with, FERRY_OK where it has not. If it has,
/// ferry_last_error() is its line from here on.
FERRY_API ferry_status ferry_comm_async_error(ferry_comm* comm, ferry_status* failure);

/// Moves what is in flight and looks whether a rank has died or given up; never blocks. For who
/// makes no other call for long.
FERRY_API ferry_status ferry_comm_progress(ferry_comm* comm);

/// Collective. Returns when all ranks have called it.
FERRY_API ferry_status ferry_comm_barrier(ferry_comm* comm, double timeout_s);

/// From now on this rank does without `rank`, of which the caller knows that it is gone, in every
/// exchange on this comm that was made to mask (on_dead_rank). A barrier's failure about this rank
/// is forgotten. FERRY_INVALID where the transport ends with its first dead rank.
FERRY_API ferry_status ferry_comm_mask(ferry_comm* comm, int32_t rank);

/// masked[r] = whether this rank does without rank r, because it was told so or found out. [ranks]
FERRY_API ferry_status ferry_comm_masked(ferry_comm* comm, uint8_t* masked, int32_t num_ranks);

#define FERRY_COMM_INFO_MAGIC 0xFE770003U

typedef struct ferry_comm_info {
  uint32_t size;
  uint32_t magic;
  int32_t rank;
  int32_t num_ranks;
  int32_t host;         ///< number of this rank's host, from 0
  int32_t reads_peers;  ///< ranks read each other's memory
  int32_t masks;        ///< the others can go on when a rank has died
  int32_t one_process;  ///< ranks are threads
  int32_t pins_memory;  ///< reserved memory costs its whole size, touched or not
  int32_t threads;
  const char* transport;  ///< as long as the comm lives
} ferry_comm_info;

#define FERRY_COMM_INFO_INIT \
  { sizeof(ferry_comm_info), FERRY_COMM_INFO_MAGIC, 0, 0, 0, 0, 0, 0, 0, 0, NULL }

FERRY_API ferry_status ferry_comm_info_get(ferry_comm* comm, ferry_comm_info* info);

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming)
