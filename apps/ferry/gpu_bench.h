// `ferry bench a2a --device cuda`: ranks of one process that share a GPU, each on a queue of its
// own with its share of the multiprocessors, or processes with a GPU each, on one host or several;
// beside the device's own copy of as many bytes.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "apps/ferry/a2a_case.h"
#include "ferry/exchange/gpu/gpu_queue.h"

namespace ferry {

/// Microseconds: medians over iterations, of the slowest rank.
struct GpuTimes {
  double dispatch = 0, combine = 0;              ///< each with both of its phases
  double floor_dispatch = 0, floor_combine = 0;  ///< a copy of half the bytes read and written
  double experts = 0;                            ///< between them, where there are some
  double floor_weights = 0;     ///< a copy of half the bytes of the weights of experts with rows
  double floor_operations = 0;  ///< their operations at the device's peak, which is measured
  double exchange = 0;          ///< back to back, without marks between
  double graph = 0;             ///< the same, each the launch of a captured graph
  std::int64_t rows = 0;        ///< of a rank's experts, of the rank that took longest over them
  int iterations = 0;
};

/// Multiplications and additions of a rank's experts.
double operations_of_experts(const A2aCase& a2a, const GpuTimes& times);

/// Of the experts, 10^12 a second on one rank; 0: there are none.
double tflops(const A2aCase& a2a, const GpuTimes& times);

/// A rank's queue.
using MakeGpuQueue = std::function<std::unique_ptr<GpuQueue>(const Transport& transport)>;

/// Throws where the sums of the first exchange are wrong. Of the case: ranks and how they are
/// started, tokens, shape, routing, wires, layout and seconds. What it returns counts where
/// speaks_for_all().
GpuTimes measure_gpu_exchange(const A2aCase& a2a, const MakeGpuQueue& make_queue);

std::string gpu_heading(const A2aCase& first, const std::string& device);
std::string gpu_line(const A2aCase& a2a, const GpuTimes& times);
/// One array with an object for each case.
std::string gpu_json(const std::vector<std::pair<A2aCase, GpuTimes>>& all,
                     const std::string& device);

}  // namespace ferry
