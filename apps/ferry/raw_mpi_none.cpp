// A build without MPI: transport mpi is off, and with it everything that would call these.
#include "apps/ferry/raw_mpi.h"
#include "ferry/core/error.h"

namespace ferry {

namespace {

[[noreturn]] void absent() {
  fail<ConfigError>("MPI is not in this build; install libopenmpi-dev");
}

}  // namespace

void mpi_alltoallv(const MpiAllToAllV&) { absent(); }

void mpi_alltoall(const std::byte*, std::byte*, std::size_t) { absent(); }

void mpi_round_trip(int, bool, std::byte*, std::size_t) { absent(); }

void mpi_stream(int, bool, std::byte*, std::size_t, int) { absent(); }

}  // namespace ferry
