#include "ferry/model/kv_cache.h"

#include "ferry/core/error.h"

namespace ferry {

KvCache::KvCache(const ModelConfig& config, DType type, int capacity)
    : type_(type),
      layers_(config.layers),
      kv_heads_(config.kv_heads),
      head_dim_(config.head_dim),
      capacity_(capacity) {
  FERRY_CHECK(type != DType::f16, "keys and values are f32 or bf16, like the activations");
  FERRY_CHECK(capacity >= 1, "a cache for {} positions", capacity);
  data_ = Buffer(2 * static_cast<std::size_t>(layers_) * kv_heads_ * capacity_ * head_dim_ *
                     dtype_bytes(type_),
                 Buffer::Use::sparse);  // every head has a stream of its own that starts short
}

void KvCache::advance(int tokens) {
  FERRY_CHECK(tokens >= 0 && tokens <= capacity_ - length_,
              "{} tokens behind {} of {} positions",
              tokens,
              length_,
              capacity_);
  length_ += tokens;
}

MutableRowsView KvCache::head_rows(int which, int layer, int kv_head) const {
  const auto row_bytes = static_cast<std::ptrdiff_t>(head_dim_ * dtype_bytes(type_));
  const auto head = (static_cast<std::ptrdiff_t>(which) * layers_ + layer) * kv_heads_ + kv_head;
  return {data_.data() + head * capacity_ * row_bytes, row_bytes};
}

}  // namespace ferry
