// MPI, loaded when it is first needed (loaded_library.h). Code that calls it includes <mpi.h> and
// then this header, and is linked with mpi_calls.cpp instead of MPI.
//
// Which MPI that may be, the headers have decided: MPIs differ in what their handles are. Open
// MPI's constants are objects of the library, which is why this header names them anew.
#pragma once

#include <string_view>

namespace ferry {

/// Why MPI cannot be called on this machine; empty where it can. The first call loads it.
std::string_view why_not_mpi_library();

/// Whether somebody in this process has loaded it, so that it may be running.
bool mpi_library_is_here();

#ifdef OPEN_MPI
/// Open MPI's objects behind the constants that we use.
struct MpiObjects {
  char* comm_world;
  char* comm_null;
  char* group_null;
  char* request_null;
  char* datatype_null;
  char* errors_return;
  char* byte;
  char* int_;
  char* uint64;
  char* max;
};

const MpiObjects& mpi_objects();

// Its macros (MPI_COMM_WORLD) take the address of these.
#define ompi_mpi_comm_world (*::ferry::mpi_objects().comm_world)
#define ompi_mpi_comm_null (*::ferry::mpi_objects().comm_null)
#define ompi_mpi_group_null (*::ferry::mpi_objects().group_null)
#define ompi_request_null (*::ferry::mpi_objects().request_null)
#define ompi_mpi_datatype_null (*::ferry::mpi_objects().datatype_null)
#define ompi_mpi_errors_return (*::ferry::mpi_objects().errors_return)
#define ompi_mpi_byte (*::ferry::mpi_objects().byte)
#define ompi_mpi_int (*::ferry::mpi_objects().int_)
#define ompi_mpi_uint64_t (*::ferry::mpi_objects().uint64)
#define ompi_mpi_op_max (*::ferry::mpi_objects().max)
#endif

}  // namespace ferry
