// GGUF files put together byte by byte, so that they may also be wrong.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace ferry::test {

/// Appends to the header; every member may be changed before bytes() makes the file.
struct GgufBytes {
  /// Dimensions as the file has them: columns first.
  struct Tensor {
    std::string name;
    std::vector<std::uint64_t> dimensions;
    std::uint32_t type = 0;
    std::uint64_t offset = 0;
  };

  std::string magic = "GGUF";
  std::uint32_t version = 3;
  std::uint64_t num_values = 0;
  std::string values;
  std::vector<Tensor> tensors;
  std::string data;
  std::size_t alignment = 32;

  template <class T>
  static std::string raw(T number) {
    std::string bytes(sizeof number, '\0');
    std::memcpy(bytes.data(), &number, sizeof number);
    return bytes;
  }

  static std::string raw_text(std::string_view text) {
    return raw(std::uint64_t{text.size()}) + std::string(text);
  }

  /// A value of a type by its number, its bytes as they are.
  GgufBytes& value(std::string_view key, std::uint32_t type, const std::string& bytes) {
    values += raw_text(key) + raw(type) + bytes;
    ++num_values;
    return *this;
  }

  GgufBytes& integer(std::string_view key, std::uint32_t number) {
    return value(key, 4, raw(number));
  }

  GgufBytes& number(std::string_view key, float number) { return value(key, 6, raw(number)); }

  GgufBytes& flag(std::string_view key, bool flag) {
    return value(key, 7, raw(static_cast<std::uint8_t>(flag)));
  }

  GgufBytes& text(std::string_view key, std::string_view text) {
    return value(key, 8, raw_text(text));
  }

  GgufBytes& texts(std::string_view key, const std::vector<std::string>& list) {
    std::string bytes = raw(std::uint32_t{8}) + raw(std::uint64_t{list.size()});
    for (const std::string& item : list) bytes += raw_text(item);
    return value(key, 9, bytes);
  }

  GgufBytes& integers(std::string_view key, const std::vector<std::int32_t>& list) {
    std::string bytes = raw(std::uint32_t{5}) + raw(std::uint64_t{list.size()});
    for (const std::int32_t item : list) bytes += raw(item);
    return value(key, 9, bytes);
  }

  GgufBytes& numbers(std::string_view key, const std::vector<float>& list) {
    std::string bytes = raw(std::uint32_t{6}) + raw(std::uint64_t{list.size()});
    for (const float item : list) bytes += raw(item);
    return value(key, 9, bytes);
  }

  /// Behind the others, with bytes that differ from their neighbours.
  GgufBytes& tensor(std::string_view name,
                    std::vector<std::uint64_t> dimensions,
                    std::uint32_t type,
                    std::size_t bytes) {
    data.resize((data.size() + alignment - 1) / alignment * alignment);
    tensors.push_back({std::string(name), std::move(dimensions), type, data.size()});
    for (std::size_t i = 0; i < bytes; ++i) data += static_cast<char>(i % 61 + tensors.size());
    return *this;
  }

  std::string bytes() const {
    std::string file = magic + raw(version) + raw(std::uint64_t{tensors.size()}) + raw(num_values);
    file += values;
    for (const Tensor& t : tensors) {
      file += raw_text(t.name) + raw(static_cast<std::uint32_t>(t.dimensions.size()));
      for (const std::uint64_t d : t.dimensions) file += raw(d);
      file += raw(t.type) + raw(t.offset);
    }
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data;
  }
};

/// A model of one layer and three experts, without a tokenizer.
inline GgufBytes small_gguf(const std::string& architecture = "qwen3moe") {
  GgufBytes file;
  const std::string of = architecture + ".";
  file.text("general.architecture", architecture)
      .integer(of + "block_count", 1)
      .integer(of + "context_length", 64)
      .integer(of + "embedding_length", 32)
      .integer(of + "feed_forward_length", 32)
      .integer(of + "attention.head_count", 2)
      .integer(of + "attention.head_count_kv", 1)
      .integer(of + "attention.key_length", 16)
      .integer(of + "attention.value_length", 16)
      .number(of + "attention.layer_norm_rms_epsilon", 1e-6F)
      .number(of + "rope.freq_base", 10000)
      .integer(of + "expert_count", 3)
      .integer(of + "expert_used_count", 2)
      .integer(of + "expert_feed_forward_length", 32);
  constexpr std::uint32_t kF32 = 0;
  constexpr std::uint32_t kQ8 = 8;  // 34 bytes for 32 elements
  file.tensor("token_embd.weight", {32, 10}, kF32, 32 * 10 * 4)
      .tensor("output_norm.weight", {32}, kF32, 32 * 4)
      .tensor("output.weight", {32, 10}, kQ8, 10 * 34)
      .tensor("blk.0.attn_norm.weight", {32}, kF32, 32 * 4)
      .tensor("blk.0.ffn_norm.weight", {32}, kF32, 32 * 4)
      .tensor("blk.0.attn_q.weight", {32, 32}, kQ8, 32 * 34)
      .tensor("blk.0.attn_k.weight", {32, 16}, kQ8, 16 * 34)
      .tensor("blk.0.attn_v.weight", {32, 16}, kQ8, 16 * 34)
      .tensor("blk.0.attn_output.weight", {32, 32}, kQ8, 32 * 34)
      .tensor("blk.0.attn_q_norm.weight", {16}, kF32, 16 * 4)
      .tensor("blk.0.attn_k_norm.weight", {16}, kF32, 16 * 4)
      .tensor("blk.0.ffn_gate_inp.weight", {32, 3}, kF32, 32 * 3 * 4)
      .tensor("blk.0.ffn_gate_exps.weight", {32, 32, 3}, kQ8, 3 * 32 * 34)
      .tensor("blk.0.ffn_up_exps.weight", {32, 32, 3}, kQ8, 3 * 32 * 34)
      .tensor("blk.0.ffn_down_exps.weight", {32, 32, 3}, kQ8, 3 * 32 * 34);
  return file;
}

}  // namespace ferry::test
