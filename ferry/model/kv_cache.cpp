#include "ferry/model/kv_cache.h"

#include "ferry/core/error.h"

namespace ferry {

KvShape KvShape::of(const ModelConfig& config) {
  if (config.latent.rank > 0) return {1, config.latent.rank + config.rope.dim};
  return {2 * config.kv_heads, config.head_dim};
}

std::size_t kv_bytes_per_position(const ModelConfig& config, DType type) {
  const KvShape shape = KvShape::of(config);
  return static_cast<std::size_t>(config.layers) * static_cast<std::size_t>(shape.streams) *
         static_cast<std::size_t>(shape.width) * dtype_bytes(type);
}

KvCache::KvCache(const ModelConfig& config, DType type, int capacity)
    : type_(type), shape_(KvShape::of(config)), capacity_(capacity) {
  FERRY_CHECK(type != DType::f16, "keys and values are f32 or bf16, like the activations");
  FERRY_CHECK(capacity >= 1, "a cache for {} positions", capacity);
  data_ = Buffer(kv_bytes_per_position(config, type) * static_cast<std::size_t>(capacity),
                 Buffer::Use::sparse);  // every stream starts short
}

void KvCache::advance(int tokens) {
  FERRY_CHECK(tokens >= 0 && tokens <= capacity_ - length_,
              "{} tokens behind {} of {} positions",
              tokens,
              length_,
              capacity_);
  length_ += tokens;
}

MutableRowsView KvCache::rows(int layer, int stream) const {
  const auto row_bytes = static_cast<std::ptrdiff_t>(shape_.width * dtype_bytes(type_));
  const auto at = static_cast<std::ptrdiff_t>(layer) * shape_.streams + stream;
  return {data_.data() + at * capacity_ * row_bytes, row_bytes};
}

}  // namespace ferry
