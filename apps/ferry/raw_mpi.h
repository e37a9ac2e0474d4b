// MPI by itself, for comparison: what a program without Tokenferry would call, on the ranks of
// MPI_COMM_WORLD.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace ferry {

/// Rows to every rank and from every rank; counts and places in rows.
struct MpiAllToAllV {
  const std::byte* from = nullptr;
  std::span<const std::int64_t> send_first = {};
  std::span<const std::int64_t> send_count = {};
  std::byte* to = nullptr;
  std::int64_t receive_stride = 0;  ///< rows between what two ranks send
  std::span<const std::int64_t> receive_count = {};
  std::size_t row_bytes = 0;
};

/// Whether this build has MPI.
bool has_mpi();
/// First, where transport mpi has not done it. To be called by all that mpirun started.
void start_mpi();

/// All throw Error with MPI's text.
void mpi_alltoallv(const MpiAllToAllV& rows);
void mpi_alltoall(const std::byte* from, std::byte* to, std::size_t bytes_per_rank);

/// One round trip to rank `peer` by MPI_Send and MPI_Recv; who does not begin answers.
void mpi_round_trip(int peer, bool begins, std::byte* buffer, std::size_t bytes);
/// `count` messages from who begins, all in flight at once, then an empty answer.
void mpi_stream(int peer, bool begins, std::byte* buffer, std::size_t bytes, int count);

}  // namespace ferry
