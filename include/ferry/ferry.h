// The C interface of libferry.so, C99: docs/c_api.md says how to use it. C++ has its own headers
// beside this one.
#pragma once

#include "ferry/c/all_to_all.h"
#include "ferry/c/base.h"
#include "ferry/c/comm.h"
#include "ferry/c/engine.h"
#include "ferry/c/eplb.h"
#include "ferry/c/experts.h"
#include "ferry/c/moe_forward.h"
#include "ferry/c/placement.h"
