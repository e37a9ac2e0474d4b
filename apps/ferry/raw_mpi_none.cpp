// A build without MPI: nobody who has asked has_mpi() calls the rest.
#include "apps/ferry/raw_mpi.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

[[noreturn]] void absent() {
  fail<ConfigError>("MPI is not in this build; install libopenmpi-dev");
}

}  // namespace

bool has_mpi() { return false; }

void start_mpi() { absent(); }

void mpi_alltoallv(const MpiAllToAllV&) { absent(); }

void mpi_alltoall(const std::byte*, std::byte*, std::size_t) { absent(); }

void mpi_round_trip(int, bool, std::byte*, std::size_t) { absent(); }

void mpi_stream(int, bool, std::byte*, std::size_t, int) { absent(); }

}  // namespace ferry
