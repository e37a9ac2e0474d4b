// More tokens than an exchange takes: several exchanges, as many on every rank.
#pragma once

#include <algorithm>

#include "ferry/core/error.h"
#include "ferry/core/types.h"
#include "ferry/dispatcher.h"

namespace ferry {

/// Calls exchange(first, count, chunks) for `tokens` tokens in pieces of at most `max_tokens`, and
/// with count = 0 for as long as another rank still has tokens: a rank learns in each exchange how
/// many the others still need. `chunks` is what the exchange announces (RoutedTokens::chunks). At
/// least one exchange runs.
template <class Exchange>
void for_each_chunk(Dispatcher& dispatcher, int max_tokens, int tokens, Exchange exchange) {
  FERRY_CHECK(tokens >= 0, "{} tokens", tokens);
  const int own_chunks = std::max(1, static_cast<int>(ceil_div(tokens, max_tokens)));
  for (int chunk = 0, chunks = 1; chunk < chunks; ++chunk) {
    const int first = chunk < own_chunks ? chunk * max_tokens : tokens;
    exchange(first, std::min(max_tokens, tokens - first), std::max(1, own_chunks - chunk));
    dispatcher.synchronise();  // where it runs later: the number stands in its memory
    chunks = chunk + dispatcher.chunks_of_all();
  }
}

}  // namespace ferry
