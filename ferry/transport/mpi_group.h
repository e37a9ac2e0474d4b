// The ranks that mpirun (or srun) started, and MPI itself: what mpi.cpp needs before the first put
// and after the last.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "ferry/transport.h"
#include "ferry/transport/byte_stream.h"

namespace ferry {

/// Throws TransportError{io} with MPI's own text where `status` is that of a failed call.
void check_mpi(int status, const char* call);

/// MPI from the first group of ranks to the end of the process. A program that runs it already also
/// ends it. Throws ConfigError where it cannot be called from more than one thread.
class MpiLibrary {
 public:
  static MpiLibrary& instance();

  /// Whether somebody has initialised MPI, and nobody has finalised it.
  static bool runs();

  /// Frees the communicators of groups that all their ranks have left.
  void tidy();

  /// A rank ends by an error: the others may never come to MPI_Finalize.
  void forget() { finalizes_ = false; }

  MpiLibrary(const MpiLibrary&) = delete;
  MpiLibrary& operator=(const MpiLibrary&) = delete;

 private:
  MpiLibrary();
  ~MpiLibrary();

  bool finalizes_ = true;
};

/// Some of the ranks that mpirun started. Threads: one at a time. Errors: TransportError{io}.
class MpiGroup {
 public:
  /// Messages to and from each rank, [R], as whoever sends and receives them counts.
  struct Traffic {
    std::vector<std::uint64_t> sent;
    std::vector<std::uint64_t> received;
  };

  /// The first `size` ranks. All of them, and those beyond, make it and finish it together.
  explicit MpiGroup(int size);
  /// These ranks of MPI_COMM_WORLD, in this order; they alone make it.
  explicit MpiGroup(std::span<const int> world_ranks);
  /// Where it was not finished: what is left to be received is received by a later tidy().
  ~MpiGroup();
  MpiGroup(const MpiGroup&) = delete;
  MpiGroup& operator=(const MpiGroup&) = delete;

  /// This process's rank in MPI_COMM_WORLD. Initialises MPI where nobody has.
  static int rank_in_world();

  bool is_member() const { return handle_.has_value(); }

  Rank rank() const { return rank_; }

  /// Of the communicator, as Fortran has it: an int in every MPI. REQUIRES: is_member().
  int handle() const { return *handle_; }

  Traffic& traffic() { return traffic_; }

  /// Every rank gives `own` and gets what all gave, in order of ranks.
  std::vector<Bytes> all_gather(const Bytes& own) const;

  /// Messages are under way that will never arrive: the communicator stays.
  void keep() { keeps_ = true; }

  /// The largest status of all ranks, once all are through. Ranks without work sleep meanwhile.
  int finish(int status);

 private:
  bool keeps_ = false;
  Rank rank_ = 0;
  std::optional<int> handle_;
  Traffic traffic_;
};

}  // namespace ferry
