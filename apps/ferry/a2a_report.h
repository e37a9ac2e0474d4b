// How `ferry bench a2a` shows its results: a table, one in the shape of pplx-kernels' README, JSON,
// and a picture.
#pragma once

#include <string>
#include <vector>

#include "apps/ferry/a2a_case.h"

namespace ferry {

struct A2aMeasured {
  A2aCase a2a;
  A2aResult result;
};

/// "bf16/bf16"; "fp8>bf16/bf16" where experts take another type than the wire's.
std::string wires_label(const A2aCase& a2a);

/// One array with an object for each operation of each case.
std::string a2a_json(const std::vector<A2aMeasured>& all);

std::string a2a_heading(const A2aCase& first);
std::string a2a_lines(const A2aMeasured& measured);

/// Who waited for whom in an exchange: a line for each rank, a column for each source.
std::string a2a_wait_lines(const A2aMeasured& measured);

/// Operations down, EP sizes across, mean +- standard deviation in microseconds, as Markdown: one
/// table for each combination of everything else.
std::string a2a_ep_tables(const std::vector<A2aMeasured>& all);

/// Median of the total over tokens per rank: a line for each backend, and whatever else differs;
/// floor and baseline beside them.
std::string a2a_plot(const std::vector<A2aMeasured>& all);

}  // namespace ferry
