// The C interface of libferry.so, C99: docs/c_api.md says how to use it. C++ has its own headers
// beside this one.
#pragma once

#include "ferry/c/base.h"
#include "ferry/c/comm.h"
