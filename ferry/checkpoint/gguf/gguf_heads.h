// Where a gated delta net's heads of values lie in GGUF: llama.cpp repeats key heads as a whole, so
// that neighbouring heads of values belong to different ones.
#pragma once

#include <cstdint>

namespace ferry {

/// REQUIRES: value_heads is a multiple of key_heads.
struct ValueHeads {
  std::int64_t key_heads = 0;  ///< 0: they lie as everywhere else, those of a key head together
  std::int64_t value_heads = 0;

  /// Where the file has what stands at `i` elsewhere, of `each` things a head.
  std::int64_t stored(std::int64_t i, std::int64_t each) const {
    if (key_heads == 0) return i;
    const std::int64_t readers = value_heads / key_heads;
    const std::int64_t head = i / each;
    return (head % readers * key_heads + head / readers) * each + i % each;
  }
};

}  // namespace ferry
