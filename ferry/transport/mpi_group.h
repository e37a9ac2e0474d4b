// The ranks that mpirun (or srun) started, and MPI itself: what mpi.cpp needs before the first put
// and after the last.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "ferry/transport/byte_stream.h"
#include "ferry/transport/transport.h"

namespace ferry {

/// Throws TransportError{io} with MPI's own text where `status` is that of a failed call.
void check_mpi(int status, const char* call);

/// MPI from the first group of ranks to the end of the process. A program that runs it already also
/// ends it. Throws ConfigError where it cannot be called from more than one thread.
class MpiLibrary {
 public:
  static MpiLibrary& instance();

  /// A rank ends by an error: the others may never come to MPI_Finalize.
  void forget() { finalizes_ = false; }

  MpiLibrary(const MpiLibrary&) = delete;
  MpiLibrary& operator=(const MpiLibrary&) = delete;

 private:
  MpiLibrary();
  ~MpiLibrary();

  bool finalizes_ = true;
};

/// The first `size` ranks of those that were started. All of them, and those beyond, make it and
/// finish it together. Threads: one at a time. Errors: TransportError{io}.
class MpiGroup {
 public:
  /// Messages to and from each rank, [R], as whoever sends and receives them counts.
  struct Traffic {
    std::vector<std::uint64_t> sent;
    std::vector<std::uint64_t> received;
  };

  explicit MpiGroup(int size);

  bool is_member() const { return handle_.has_value(); }

  Rank rank() const { return rank_; }

  /// Of the communicator, as Fortran has it: an int in every MPI. REQUIRES: is_member().
  int handle() const { return *handle_; }

  Traffic& traffic() { return traffic_; }

  /// Every rank gives `own` and gets what all gave, in order of ranks.
  std::vector<Bytes> all_gather(const Bytes& own) const;

  /// The largest status of all ranks, once all are through. Ranks without work sleep meanwhile.
  int finish(int status);

 private:
  void take_the_rest();

  Rank rank_ = 0;
  std::optional<int> handle_;
  Traffic traffic_;
};

}  // namespace ferry
