// What ranks that were started apart must have alike ("model", "sha256:...").
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "ferry/export.h"
#include "ferry/types.h"

namespace ferry {

/// Names and values, in the same order on all ranks.
using Agreement = std::vector<std::pair<std::string, std::string>>;

/// What ranks do not have alike.
struct Difference {
  std::string text;  ///< one line that names all ranks; empty: they agree
  Rank rank = -1;    ///< one that differs from rank 0
};

/// `agreements[r]` is rank r's.
FERRY_API Difference find_difference(const std::vector<Agreement>& agreements);

/// "rank 2", "ranks 0, 1 and 3".
FERRY_API std::string ranks_text(const std::vector<Rank>& ranks);

}  // namespace ferry
