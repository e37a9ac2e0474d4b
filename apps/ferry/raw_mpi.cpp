#include "apps/ferry/raw_mpi.h"

#include <mpi.h>

#include <array>
#include <climits>
#include <cstdlib>
#include <string>
#include <vector>

#include "ferry/core/error.h"
#include "ferry/transport/mpi_calls.h"

namespace ferry {

namespace {

void check(int status, const char* call) {
  if (status == MPI_SUCCESS) return;
  std::array<char, MPI_MAX_ERROR_STRING> text{};
  int length = 0;
  MPI_Error_string(status, text.data(), &length);
  fail<Error>("{}: {}", call, std::string(text.data(), static_cast<std::size_t>(length)));
}

/// A row as one element: counts stay small.
class RowType {
 public:
  explicit RowType(std::size_t bytes) {
    check(MPI_Type_contiguous(static_cast<int>(bytes), MPI_BYTE, &type_), "MPI_Type_contiguous");
    check(MPI_Type_commit(&type_), "MPI_Type_commit");
  }

  ~RowType() { MPI_Type_free(&type_); }

  RowType(const RowType&) = delete;
  RowType& operator=(const RowType&) = delete;

  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

std::vector<int> as_ints(std::span<const std::int64_t> values) {
  return {values.begin(), values.end()};
}

void send(int peer, const std::byte* data, std::size_t bytes) {
  check(MPI_Send(data, static_cast<int>(bytes), MPI_BYTE, peer, 1, MPI_COMM_WORLD), "MPI_Send");
}

void receive(int peer, std::byte* data, std::size_t bytes) {
  check(
      MPI_Recv(data, static_cast<int>(bytes), MPI_BYTE, peer, 1, MPI_COMM_WORLD, MPI_STATUS_IGNORE),
      "MPI_Recv");
}

}  // namespace

bool has_mpi() { return true; }

void start_mpi() {
  int running = 0;
  check(MPI_Initialized(&running), "MPI_Initialized");
  if (running) return;
  int provided = 0;
  check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  static_cast<void>(std::atexit([] { MPI_Finalize(); }));
}

void mpi_alltoallv(const MpiAllToAllV& rows) {
  const RowType row(rows.row_bytes);
  const std::vector<int> send_counts = as_ints(rows.send_count);
  const std::vector<int> send_first = as_ints(rows.send_first);
  const std::vector<int> receive_counts = as_ints(rows.receive_count);
  std::vector<int> receive_first;
  for (std::size_t r = 0; r < receive_counts.size(); ++r)
    receive_first.push_back(static_cast<int>(static_cast<std::int64_t>(r) * rows.receive_stride));
  check(MPI_Alltoallv(rows.from,
                      send_counts.data(),
                      send_first.data(),
                      row.get(),
                      rows.to,
                      receive_counts.data(),
                      receive_first.data(),
                      row.get(),
                      MPI_COMM_WORLD),
        "MPI_Alltoallv");
}

void mpi_alltoall(const std::byte* from, std::byte* to, std::size_t bytes_per_rank) {
  const int bytes = static_cast<int>(bytes_per_rank);
  check(MPI_Alltoall(from, bytes, MPI_BYTE, to, bytes, MPI_BYTE, MPI_COMM_WORLD), "MPI_Alltoall");
}

void mpi_round_trip(int peer, bool begins, std::byte* buffer, std::size_t bytes) {
  if (begins) send(peer, buffer, bytes);
  receive(peer, buffer, bytes);
  if (!begins) send(peer, buffer, bytes);
}

void mpi_stream(int peer, bool begins, std::byte* buffer, std::size_t bytes, int count) {
  std::vector<MPI_Request> requests(static_cast<std::size_t>(count), MPI_REQUEST_NULL);
  for (MPI_Request& request : requests) {
    const int n = static_cast<int>(bytes);
    check(begins ? MPI_Isend(buffer, n, MPI_BYTE, peer, 2, MPI_COMM_WORLD, &request)
                 : MPI_Irecv(buffer, n, MPI_BYTE, peer, 2, MPI_COMM_WORLD, &request),
          begins ? "MPI_Isend" : "MPI_Irecv");
  }
  check(MPI_Waitall(count, requests.data(), MPI_STATUSES_IGNORE), "MPI_Waitall");
  std::byte nothing{};
  begins ? receive(peer, &nothing, 0) : send(peer, &nothing, 0);
}

}  // namespace ferry
