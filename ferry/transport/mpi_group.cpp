#include "ferry/transport/mpi_group.h"

#include <mpi.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <list>
#include <string>
#include <thread>

#include "ferry/core/error.h"
#include "ferry/transport/mpi_calls.h"

namespace ferry {

namespace {

void sleep_until_done(MPI_Request request) {
  for (int done = 0;;) {
    check_mpi(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (done) return;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

/// What was said to a rank after it had left. MPICH would bring it to the next group of ranks,
/// which gets this one's number.
struct Farewell {
  Farewell(int handle, MpiGroup::Traffic& traffic)
      : group(MPI_Comm_f2c(handle)), counts(std::move(traffic)), due(counts.sent.size()) {
    check_mpi(
        MPI_Ialltoall(
            counts.sent.data(), 1, MPI_UINT64_T, due.data(), 1, MPI_UINT64_T, group, &request),
        "MPI_Ialltoall");
  }

  /// Once `request` is done: every rank has left, and what they sent is known.
  void take_the_rest() {
    Bytes message;
    for (std::size_t r = 0; r < due.size(); ++r) {
      for (; counts.received[r] < due[r]; ++counts.received[r]) {
        MPI_Status status;
        int bytes = 0;
        check_mpi(MPI_Probe(static_cast<Rank>(r), MPI_ANY_TAG, group, &status), "MPI_Probe");
        check_mpi(MPI_Get_count(&status, MPI_BYTE, &bytes), "MPI_Get_count");
        message.resize(static_cast<std::size_t>(bytes));
        check_mpi(MPI_Recv(message.data(),
                           bytes,
                           MPI_BYTE,
                           status.MPI_SOURCE,
                           status.MPI_TAG,
                           group,
                           MPI_STATUS_IGNORE),
                  "MPI_Recv");
      }
    }
  }

  MPI_Comm group;
  MpiGroup::Traffic counts;
  std::vector<std::uint64_t> due;
  MPI_Request request = MPI_REQUEST_NULL;
};

/// Of groups that this rank has left and others perhaps not yet.
std::list<Farewell>& farewells() {
  static std::list<Farewell> all;
  return all;
}

}  // namespace

void check_mpi(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  std::string why(text.data(), static_cast<std::size_t>(length));
  std::replace(why.begin(), why.end(), '\n', ' ');
  throw TransportError(TransportError::Kind::io, -1, fmt::format("mpi: {}: {}", call, why));
}

MpiLibrary& MpiLibrary::instance() {
  static MpiLibrary library;
  return library;
}

bool MpiLibrary::runs() {
  if (!mpi_library_is_here()) return false;
  int initialized = 0;
  int finalized = 0;
  MPI_Initialized(&initialized);
  MPI_Finalized(&finalized);
  return initialized && !finalized;
}

void MpiLibrary::tidy() {
  std::erase_if(farewells(), [](Farewell& farewell) {
    int done = 0;
    check_mpi(MPI_Test(&farewell.request, &done, MPI_STATUS_IGNORE), "MPI_Test");
    if (!done) return false;
    farewell.take_the_rest();
    MPI_Comm_free(&farewell.group);
    return true;
  });
}

MpiLibrary::MpiLibrary() {
  // Made first, so that they outlive MPI, which may still write to them as it ends.
  static_cast<void>(farewells());
  int running = 0;
  int provided = 0;
  check_mpi(MPI_Initialized(&running), "MPI_Initialized");
  finalizes_ = !running;
  if (running) {
    check_mpi(MPI_Query_thread(&provided), "MPI_Query_thread");
  } else {
    check_mpi(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided),
              "MPI_Init_thread");
  }
  if (provided < MPI_THREAD_SERIALIZED)
    fail<ConfigError>("mpi: this MPI cannot be called from more than one thread");
  check_mpi(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
}

MpiLibrary::~MpiLibrary() {
  if (finalizes_ && runs()) MPI_Finalize();
}

MpiGroup::MpiGroup(int size) {
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank_), "MPI_Comm_rank");
  MPI_Comm group = MPI_COMM_NULL;
  check_mpi(MPI_Comm_split(MPI_COMM_WORLD, rank_ < size ? 0 : MPI_UNDEFINED, rank_, &group),
            "MPI_Comm_split");
  if (group != MPI_COMM_NULL) {
    check_mpi(MPI_Comm_set_errhandler(group, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
    handle_ = MPI_Comm_c2f(group);
  }
  traffic_.sent.resize(static_cast<std::size_t>(size));
  traffic_.received.resize(traffic_.sent.size());
}

MpiGroup::MpiGroup(std::span<const int> world_ranks) {
  MPI_Group world = MPI_GROUP_NULL;
  MPI_Group members = MPI_GROUP_NULL;
  MPI_Comm group = MPI_COMM_NULL;
  const int size = static_cast<int>(world_ranks.size());
  check_mpi(MPI_Comm_group(MPI_COMM_WORLD, &world), "MPI_Comm_group");
  check_mpi(MPI_Group_incl(world, size, world_ranks.data(), &members), "MPI_Group_incl");
  check_mpi(MPI_Comm_create_group(MPI_COMM_WORLD, members, 0, &group), "MPI_Comm_create_group");
  MPI_Group_free(&members);
  MPI_Group_free(&world);
  check_mpi(MPI_Comm_set_errhandler(group, MPI_ERRORS_RETURN), "MPI_Comm_set_errhandler");
  check_mpi(MPI_Comm_rank(group, &rank_), "MPI_Comm_rank");
  handle_ = MPI_Comm_c2f(group);
  traffic_.sent.resize(world_ranks.size());
  traffic_.received.resize(world_ranks.size());
}

MpiGroup::~MpiGroup() {
  if (!handle_ || keeps_ || !MpiLibrary::runs()) return;
  try {
    farewells().emplace_back(*handle_, traffic_);
  } catch (const std::exception&) {
    // The communicator stays until MPI ends.
  }
}

int MpiGroup::rank_in_world() {
  static_cast<void>(MpiLibrary::instance());
  int rank = 0;
  check_mpi(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "MPI_Comm_rank");
  return rank;
}

std::vector<Bytes> MpiGroup::all_gather(const Bytes& own) const {
  MPI_Comm group = MPI_Comm_f2c(handle());
  int size = 0;
  check_mpi(MPI_Comm_size(group, &size), "MPI_Comm_size");
  int bytes = static_cast<int>(own.size());
  std::vector<int> lengths(static_cast<std::size_t>(size));
  std::vector<int> starts(lengths.size(), 0);
  check_mpi(MPI_Allgather(&bytes, 1, MPI_INT, lengths.data(), 1, MPI_INT, group), "MPI_Allgather");
  for (std::size_t r = 1; r < lengths.size(); ++r) starts[r] = starts[r - 1] + lengths[r - 1];
  Bytes all(static_cast<std::size_t>(starts.back() + lengths.back()));
  check_mpi(
      MPI_Allgatherv(
          own.data(), bytes, MPI_BYTE, all.data(), lengths.data(), starts.data(), MPI_BYTE, group),
      "MPI_Allgatherv");
  std::vector<Bytes> each;
  for (std::size_t r = 0; r < lengths.size(); ++r)
    each.emplace_back(all.begin() + starts[r], all.begin() + starts[r] + lengths[r]);
  return each;
}

int MpiGroup::finish(int status) {
  if (is_member()) {
    Farewell farewell(*handle_, traffic_);
    sleep_until_done(farewell.request);
    farewell.take_the_rest();
  }
  int largest = status;
  MPI_Request request = MPI_REQUEST_NULL;
  check_mpi(MPI_Iallreduce(&status, &largest, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD, &request),
            "MPI_Iallreduce");
  sleep_until_done(request);
  if (is_member()) {
    MPI_Comm group = MPI_Comm_f2c(handle());
    MPI_Comm_free(&group);
    handle_.reset();
  }
  return largest;
}

}  // namespace ferry
