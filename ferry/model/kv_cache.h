// Keys and values of one sequence.
#pragma once

#include <cstdint>

#include "ferry/core/buffer.h"
#include "ferry/core/types.h"
#include "ferry/model/config.h"

namespace ferry {

/// What a layer keeps of each position: `streams` rows of `width` elements.
///   keys and values of heads: the keys of each key-value head, then the values of each.
///   latent attention: one row, of which all heads' keys and values are made.
struct KvShape {
  int streams = 0;
  int width = 0;

  static KvShape of(const ModelConfig& config);
};

/// Bytes that all layers keep of one position.
std::size_t kv_bytes_per_position(const ModelConfig& config, DType type);

/// The streams of all layers for up to `capacity` positions, in the model's activation type;
/// untouched pages cost nothing. Layout: [layer][stream][position][width], so that one head reads
/// one stream. Threads: one at a time.
class KvCache {
 public:
  /// `type`: f32 or bf16.
  KvCache(const ModelConfig& config, DType type, int capacity);

  /// Positions filled so far, which is also the position of the next token.
  int length() const { return length_; }

  int capacity() const { return capacity_; }

  /// Counts tokens whose rows are written. REQUIRES: room for them.
  void advance(int tokens);

  /// Forgets the sequence; the memory is kept for the next one.
  void clear() { length_ = 0; }

  DType type() const { return type_; }

  /// All positions of one key-value head: row p is position p. REQUIRES: no latent attention.
  MutableRowsView keys(int layer, int kv_head) const { return rows(layer, kv_head); }

  MutableRowsView values(int layer, int kv_head) const {
    return rows(layer, shape_.streams / 2 + kv_head);
  }

  /// The rows of latent attention.
  MutableRowsView latents(int layer) const { return rows(layer, 0); }

 private:
  MutableRowsView rows(int layer, int stream) const;

  DType type_;
  KvShape shape_;
  int capacity_;
  int length_ = 0;
  Buffer data_;
};

}  // namespace ferry
