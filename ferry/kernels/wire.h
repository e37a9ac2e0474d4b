#pragma once

#include "ferry/core/types.h"
#include "ferry/wire.h"
