// Keys and values of one sequence.
#pragma once

#include <cstdint>

#include "ferry/core/buffer.h"
#include "ferry/core/types.h"
#include "ferry/model/config.h"

namespace ferry {

/// Keys and values of all layers for up to `capacity` positions, in the model's activation type;
/// untouched pages cost nothing. Layout: [layer][kv head][position][head_dim], keys and values
/// apart, so that one head reads one stream. Threads: one at a time.
class KvCache {
 public:
  /// `type`: f32 or bf16.
  KvCache(const ModelConfig& config, DType type, int capacity);

  /// Positions filled so far, which is also the position of the next token.
  int length() const { return length_; }

  int capacity() const { return capacity_; }

  /// Counts tokens whose keys and values are written. REQUIRES: room for them.
  void advance(int tokens);

  /// Forgets the sequence; the memory is kept for the next one.
  void clear() { length_ = 0; }

  DType type() const { return type_; }

  /// All positions of one head: row p is position p.
  MutableRowsView keys(int layer, int kv_head) const { return head_rows(0, layer, kv_head); }

  MutableRowsView values(int layer, int kv_head) const { return head_rows(1, layer, kv_head); }

 private:
  MutableRowsView head_rows(int which, int layer, int kv_head) const;

  DType type_;
  int layers_;
  int kv_heads_;
  int head_dim_;
  int capacity_;
  int length_ = 0;
  Buffer data_;
};

}  // namespace ferry
