// The functions of MPI that we call, each of which calls the loaded one. (apps/ferry/raw_mpi.cpp
// has some for itself alone.) Our header builds on MPI's, so it comes behind.
// clang-format off
#include <dlfcn.h>
#include <mpi.h>

#include "ferry/transport/loaded_library.h"
#include "ferry/transport/mpi_calls.h"

// clang-format on

namespace ferry {

namespace {

LoadedLibrary& library() {
  static LoadedLibrary mpi({.what = "the MPI that this was built for",
                            .files = {FERRY_MPI_SONAME, FERRY_MPI_FILE},
                            .remedy = "install it, or build with the one that is here",
                            .global = true});
  return mpi;
}

/// Two in one process know nothing of each other: ours would not be running.
std::string find_other_mpi() {
  const void* theirs = dlsym(RTLD_DEFAULT, "MPI_Get_library_version");
  if (theirs == nullptr || library().is_here()) return {};
  Dl_info info{};
  dladdr(theirs, &info);
  return std::string("this process has another MPI (") + info.dli_fname +
         ") than the one that this was built for (" FERRY_MPI_SONAME ")";
}

}  // namespace

std::string_view why_not_mpi_library() {
  static const std::string other = find_other_mpi();
  return other.empty() ? library().why_not() : other;
}

bool mpi_library_is_here() { return library().is_here(); }

#ifdef OPEN_MPI
const MpiObjects& mpi_objects() {
  const auto object = [](const char* name) { return static_cast<char*>(library().find({name})); };
  static const MpiObjects objects{.comm_world = object("ompi_mpi_comm_world"),
                                  .comm_null = object("ompi_mpi_comm_null"),
                                  .group_null = object("ompi_mpi_group_null"),
                                  .request_null = object("ompi_request_null"),
                                  .datatype_null = object("ompi_mpi_datatype_null"),
                                  .errors_return = object("ompi_mpi_errors_return"),
                                  .byte = object("ompi_mpi_byte"),
                                  .int_ = object("ompi_mpi_int"),
                                  .uint64 = object("ompi_mpi_uint64_t"),
                                  .max = object("ompi_mpi_op_max")};
  return objects;
}
#endif

}  // namespace ferry

// NOLINTBEGIN(readability-identifier-naming, readability-function-size): the names are MPI's.
#define FERRY_MPI(name, parameters, arguments)                               \
  int name parameters {                                                      \
    static const auto loaded =                                               \
        reinterpret_cast<decltype(&(name))>(ferry::library().find({#name})); \
    return loaded arguments;                                                 \
  }

extern "C" {
// Itself.
FERRY_MPI(MPI_Initialized, (int* flag), (flag))
FERRY_MPI(MPI_Finalized, (int* flag), (flag))
FERRY_MPI(MPI_Init_thread,
          (int* argc, char*** argv, int required, int* provided),
          (argc, argv, required, provided))
FERRY_MPI(MPI_Query_thread, (int* provided), (provided))
FERRY_MPI(MPI_Finalize, (), ())
FERRY_MPI(MPI_Error_string, (int code, char* text, int* length), (code, text, length))

// Communicators.
FERRY_MPI(MPI_Comm_rank, (MPI_Comm comm, int* rank), (comm, rank))
FERRY_MPI(MPI_Comm_size, (MPI_Comm comm, int* size), (comm, size))
FERRY_MPI(MPI_Comm_split,
          (MPI_Comm comm, int color, int key, MPI_Comm* out),
          (comm, color, key, out))
FERRY_MPI(MPI_Comm_group, (MPI_Comm comm, MPI_Group* group), (comm, group))
FERRY_MPI(MPI_Comm_create_group,
          (MPI_Comm comm, MPI_Group group, int tag, MPI_Comm* out),
          (comm, group, tag, out))
FERRY_MPI(MPI_Comm_set_errhandler, (MPI_Comm comm, MPI_Errhandler handler), (comm, handler))
FERRY_MPI(MPI_Comm_free, (MPI_Comm * comm), (comm))
FERRY_MPI(MPI_Group_incl,
          (MPI_Group group, int n, const int* ranks, MPI_Group* out),
          (group, n, ranks, out))
FERRY_MPI(MPI_Group_free, (MPI_Group * group), (group))

// Messages.
FERRY_MPI(MPI_Isend,
          (const void* data,
           int count,
           MPI_Datatype type,
           int to,
           int tag,
           MPI_Comm comm,
           MPI_Request* request),
          (data, count, type, to, tag, comm, request))
FERRY_MPI(MPI_Irecv,
          (void* data,
           int count,
           MPI_Datatype type,
           int from,
           int tag,
           MPI_Comm comm,
           MPI_Request* request),
          (data, count, type, from, tag, comm, request))
FERRY_MPI(MPI_Recv,
          (void* data,
           int count,
           MPI_Datatype type,
           int from,
           int tag,
           MPI_Comm comm,
           MPI_Status* status),
          (data, count, type, from, tag, comm, status))
FERRY_MPI(MPI_Send,
          (const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm),
          (data, count, type, to, tag, comm))
FERRY_MPI(MPI_Probe,
          (int from, int tag, MPI_Comm comm, MPI_Status* status),
          (from, tag, comm, status))
FERRY_MPI(MPI_Get_count,
          (const MPI_Status* status, MPI_Datatype type, int* count),
          (status, type, count))
FERRY_MPI(MPI_Test, (MPI_Request * request, int* flag, MPI_Status* status), (request, flag, status))
FERRY_MPI(MPI_Wait, (MPI_Request * request, MPI_Status* status), (request, status))
FERRY_MPI(MPI_Waitall,
          (int count, MPI_Request* requests, MPI_Status* statuses),
          (count, requests, statuses))
FERRY_MPI(MPI_Cancel, (MPI_Request * request), (request))
FERRY_MPI(MPI_Test_cancelled, (const MPI_Status* status, int* flag), (status, flag))

// Collective calls, and what rows are in them.
FERRY_MPI(MPI_Allgather,
          (const void* from,
           int count,
           MPI_Datatype type,
           void* to,
           int to_count,
           MPI_Datatype to_type,
           MPI_Comm comm),
          (from, count, type, to, to_count, to_type, comm))
FERRY_MPI(MPI_Allgatherv,
          (const void* from,
           int count,
           MPI_Datatype type,
           void* to,
           const int* to_counts,
           const int* to_places,
           MPI_Datatype to_type,
           MPI_Comm comm),
          (from, count, type, to, to_counts, to_places, to_type, comm))
FERRY_MPI(MPI_Iallreduce,
          (const void* from,
           void* to,
           int count,
           MPI_Datatype type,
           MPI_Op op,
           MPI_Comm comm,
           MPI_Request* request),
          (from, to, count, type, op, comm, request))
FERRY_MPI(MPI_Alltoall,
          (const void* from,
           int count,
           MPI_Datatype type,
           void* to,
           int to_count,
           MPI_Datatype to_type,
           MPI_Comm comm),
          (from, count, type, to, to_count, to_type, comm))
FERRY_MPI(MPI_Ialltoall,
          (const void* from,
           int count,
           MPI_Datatype type,
           void* to,
           int to_count,
           MPI_Datatype to_type,
           MPI_Comm comm,
           MPI_Request* request),
          (from, count, type, to, to_count, to_type, comm, request))
FERRY_MPI(MPI_Alltoallv,
          (const void* from,
           const int* counts,
           const int* places,
           MPI_Datatype type,
           void* to,
           const int* to_counts,
           const int* to_places,
           MPI_Datatype to_type,
           MPI_Comm comm),
          (from, counts, places, type, to, to_counts, to_places, to_type, comm))
FERRY_MPI(MPI_Type_contiguous,
          (int count, MPI_Datatype type, MPI_Datatype* out),
          (count, type, out))
FERRY_MPI(MPI_Type_commit, (MPI_Datatype * type), (type))
FERRY_MPI(MPI_Type_free, (MPI_Datatype * type), (type))

// Communicators as numbers: macros in MPICH.
#ifndef MPI_Comm_c2f
MPI_Fint MPI_Comm_c2f(MPI_Comm comm) {
  static const auto loaded =
      reinterpret_cast<decltype(&MPI_Comm_c2f)>(ferry::library().find({"MPI_Comm_c2f"}));
  return loaded(comm);
}

MPI_Comm MPI_Comm_f2c(MPI_Fint comm) {
  static const auto loaded =
      reinterpret_cast<decltype(&MPI_Comm_f2c)>(ferry::library().find({"MPI_Comm_f2c"}));
  return loaded(comm);
}
#endif
}
// NOLINTEND(readability-identifier-naming, readability-function-size)
