#pragma once

#include "ferry/function_ref.h"
