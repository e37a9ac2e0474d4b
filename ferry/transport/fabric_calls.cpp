// The functions of libfabric that we call by name, each of which calls the loaded one. All others
// are inline in its headers, and go through tables that these hand out. What the linker would
// record, CMake reads from the library that the headers belong to: each function's version, which
// says how long the structs are that it takes.
#include "ferry/transport/fabric_calls.h"

#include <rdma/fabric.h>
#include <rdma/fi_errno.h>

#include "ferry/transport/loaded_library.h"

namespace ferry {

namespace {

LoadedLibrary& libfabric() {
  static LoadedLibrary library({.what = "libfabric",
                                .files = {FERRY_LIBFABRIC_FILE},
                                .remedy = "install it (Debian: libfabric1)",
                                .first = {"fi_getinfo", FERRY_VERSION_fi_getinfo}});
  return library;
}

}  // namespace

std::string_view why_not_libfabric() { return libfabric().why_not(); }

}  // namespace ferry

// NOLINTBEGIN(readability-identifier-naming): the names are libfabric's.
#define FERRY_FABRIC(result, name, parameters, arguments)           \
  result name parameters {                                          \
    static const auto loaded = reinterpret_cast<decltype(&(name))>( \
        ferry::libfabric().find({#name, FERRY_VERSION_##name}));    \
    return loaded arguments;                                        \
  }

extern "C" {
FERRY_FABRIC(int,
             fi_getinfo,
             (std::uint32_t version,
              const char* node,
              const char* service,
              std::uint64_t flags,
              const fi_info* hints,
              fi_info** info),
             (version, node, service, flags, hints, info))
FERRY_FABRIC(void, fi_freeinfo, (fi_info * info), (info))
FERRY_FABRIC(fi_info*, fi_dupinfo, (const fi_info* info), (info))
FERRY_FABRIC(int,
             fi_fabric,
             (fi_fabric_attr * attr, fid_fabric** fabric, void* context),
             (attr, fabric, context))
FERRY_FABRIC(const char*, fi_strerror, (int error), (error))
}
// NOLINTEND(readability-identifier-naming)
