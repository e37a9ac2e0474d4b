// A store of the caller as join() wants it.
#pragma once

#include "ferry/c/comm.h"
#include "ferry/store.h"

namespace ferry::c {

/// Calls the caller's functions. Throws ConfigError where one is missing.
CallbackStore caller_store(const ferry_store* store);

}  // namespace ferry::c
