#include "ferry/model/kv_cache.h"

#include <gtest/gtest.h>

#include <cstring>
#include <set>

#include "ferry/core/error.h"

namespace ferry {
namespace {

ModelConfig small_config() {
  ModelConfig config;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  return config;
}

TEST(KvCache, EveryRowHasItsOwnMemory) {
  const ModelConfig config = small_config();
  for (const DType type : {DType::f32, DType::bf16}) {
    const int capacity = 5;
    const KvCache cache(config, type, capacity);
    const std::size_t row_bytes = 6 * dtype_bytes(type);
    unsigned char mark = 0;
    std::set<const std::byte*> rows;
    const auto each_row = [&](const auto& visit) {
      mark = 0;
      for (int layer = 0; layer < config.layers; ++layer) {
        for (int head = 0; head < config.kv_heads; ++head) {
          for (int p = 0; p < capacity; ++p) {
            visit(cache.keys(layer, head).row(p), ++mark);
            visit(cache.values(layer, head).row(p), ++mark);
          }
        }
      }
    };
    each_row([&](std::byte* row, unsigned char m) {
      rows.insert(row);
      std::memset(row, m, row_bytes);
    });
    EXPECT_EQ(rows.size(), 2U * 3U * 2U * 5U);
    each_row([&](const std::byte* row, unsigned char m) {
      for (std::size_t i = 0; i < row_bytes; ++i) ASSERT_EQ(row[i], std::byte{m});
    });
  }
}

TEST(KvCache, OneHeadIsOneStreamOfPositions) {
  const KvCache cache(small_config(), DType::bf16, 7);
  EXPECT_EQ(cache.keys(1, 1).stride, 12);
  EXPECT_EQ(cache.values(1, 1).stride, 12);
  EXPECT_EQ(cache.keys(1, 1).base - cache.keys(1, 0).base, 7 * 12);
}

TEST(KvCache, LatentAttentionKeepsOneRowOfALayer) {
  ModelConfig config = small_config();
  EXPECT_EQ(kv_bytes_per_position(config, DType::bf16), 3U * 2 * 2 * 6 * 2);
  config.latent.rank = 10;
  config.rope.dim = 4;
  EXPECT_EQ(kv_bytes_per_position(config, DType::bf16), 3U * 14 * 2);
  const KvCache cache(config, DType::bf16, 7);
  EXPECT_EQ(cache.latents(0).stride, 28);
  EXPECT_EQ(cache.latents(2).base - cache.latents(1).base, 7 * 28);
}

TEST(KvCache, CountsPositionsUpToItsCapacity) {
  KvCache cache(small_config(), DType::f32, 4);
  EXPECT_EQ(cache.length(), 0);
  cache.advance(3);
  EXPECT_EQ(cache.length(), 3);
  EXPECT_THROW(cache.advance(2), BrokenContract);
  EXPECT_THROW(cache.advance(-1), BrokenContract);
  EXPECT_EQ(cache.length(), 3);
  cache.advance(1);
  cache.clear();
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(cache.capacity(), 4);
}

TEST(KvCache, RefusesTypesThatAttentionCannotRead) {
  EXPECT_THROW(KvCache(small_config(), DType::f16, 4), BrokenContract);
  EXPECT_THROW(KvCache(small_config(), DType::f32, 0), BrokenContract);
}

}  // namespace
}  // namespace ferry
