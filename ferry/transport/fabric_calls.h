// libfabric, loaded when it is first needed (loaded_library.h). Code that calls it includes its
// headers and is linked with fabric_calls.cpp instead of it.
#pragma once

#include <string_view>

namespace ferry {

/// Why libfabric cannot be called on this machine; empty where it can. The first call loads it.
std::string_view why_not_libfabric();

}  // namespace ferry
