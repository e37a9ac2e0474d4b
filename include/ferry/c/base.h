// What all of the C interface shares: statuses, the head of every struct, element types, and where
// memory lies.
//
// Every struct begins with its size and a magic number of its kind, and is made by its _INIT macro,
// which also has the defaults:
//   ferry_comm_options options = FERRY_COMM_OPTIONS_INIT;
// So a struct can grow at its end: a library takes one that is shorter than its own, and a longer
// one whose surplus is zero. A function takes what it is handed for the call alone, unless it says
// otherwise.
#pragma once

#include <stddef.h>  // NOLINT(modernize-deprecated-headers): this is C
#include <stdint.h>  // NOLINT(modernize-deprecated-headers)

#include "ferry/export.h"

// NOLINTBEGIN(readability-identifier-naming): C has no namespaces; names begin with ferry_.
#ifdef __cplusplus
extern "C" {
#endif

/// What every function returns. Its one line is ferry_last_error(): what, where, what to do.
typedef enum ferry_status {
  FERRY_OK = 0,
  FERRY_INVALID = 1,       ///< an argument that cannot be (NULL, a wrong size, an unknown name, a
                           ///< number out of range); nothing was made or changed
  FERRY_OUT_OF_ORDER = 2,  ///< not now: phases out of turn, another call that runs, what still
                           ///< uses it; nothing was made or changed
  FERRY_PEER_DIED = 3,     ///< a rank is gone: ferry_last_error_rank()
  FERRY_TIMED_OUT = 4,     ///< a rank is late
  FERRY_ABORTED = 5,       ///< a rank has given up, and says why
  FERRY_NETWORK = 6,       ///< the store or the network does not answer, or answers nonsense
  FERRY_MODEL = 7,         ///< a checkpoint is missing, damaged, or not what its config says
  FERRY_REFUSED = 8,       ///< not now, but the same call may succeed later
  FERRY_ENDED = 9,         ///< the engine runs no more
  FERRY_SYSTEM = 10,       ///< the system refused memory, a thread, a file
  FERRY_CALLBACK = 11,     ///< a function of the caller has failed
  FERRY_DEFECT = 12        ///< a contract of ours was broken: please report the line
} ferry_status;

/// "FERRY_OK" and so on; "unknown status" for another number.
FERRY_API const char* ferry_status_name(ferry_status status);

/// The line of this thread's last call that did not return FERRY_OK; "" before there was one. Stays
/// until the next one.
FERRY_API const char* ferry_last_error(void);

/// The rank that this line is about; -1 where none is known.
FERRY_API int32_t ferry_last_error_rank(void);

/// "0.1.0", of the library that runs; ferry/version.h has that of the headers.
FERRY_API const char* ferry_version(void);

/// Element types of rows.
typedef enum ferry_dtype { FERRY_F32 = 0, FERRY_BF16 = 1, FERRY_F16 = 2 } ferry_dtype;

/// What rows are while they travel (docs/numerics.md, "Wires"); quantised ones have their scales
/// behind the values (ferry/wire.h says where).
typedef enum ferry_wire {
  FERRY_WIRE_F32 = 0,
  FERRY_WIRE_BF16 = 1,
  FERRY_WIRE_FP8 = 2,        ///< e4m3fn, an f32 scale per 128 values
  FERRY_WIRE_FP8_POW2 = 3,   ///< the same, the scale a power of two (UE8M0)
  FERRY_WIRE_INT8 = 4,       ///< one f32 scale for the row
  FERRY_WIRE_INT8_BLOCK = 5  ///< an f32 scale per 128 values
} ferry_wire;

/// Bytes of a row of `values` values; 0 for a wire that there is not.
FERRY_API size_t ferry_wire_row_bytes(ferry_wire wire, int64_t values);

typedef enum ferry_memory {
  FERRY_HOST = 0,         ///< ordinary memory of this process
  FERRY_HOST_PINNED = 1,  ///< the same, locked for a device or a network
  FERRY_DEVICE = 2        ///< of a device
} ferry_memory;

/// Where memory lies, and from when on it may be read. All zero: ordinary memory, readable now.
/// An exchange (all_to_all.h) may also be in device memory; whatever else takes no other place says
/// so.
typedef struct ferry_place {
  int32_t memory;  ///< ferry_memory
  int32_t device;  ///< its number
  void* queue;     ///< not NULL: valid for work that is put on this queue from now on
} ferry_place;

#define FERRY_PLACE_HOST \
  { FERRY_HOST, 0, NULL }

#ifdef __cplusplus
}
#endif
// NOLINTEND(readability-identifier-naming)
