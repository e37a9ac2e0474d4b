// Byte-pair encoding of one word: merges the neighbours with the lowest rank until none is left.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace ferry {

/// Threads: const use from several is safe, each with its own Scratch.
class Bpe {
 public:
  struct Merge {
    std::int32_t left, right, result;  // token ids
  };

  /// Memory that encode() uses again from word to word.
  struct Scratch {
    struct Symbol {
      std::int32_t id;  // -1: merged into its left neighbour
      std::int32_t previous, next;
    };

    struct Candidate {
      std::int32_t rank, position, left, right;
    };

    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  Bpe() = default;
  /// byte_ids: the token of each single byte. merges: in order of rank; the last of two for the
  /// same pair counts.
  Bpe(const std::array<std::int32_t, 256>& byte_ids, const std::vector<Merge>& merges);

  /// Appends the tokens of a word of bytes. O(n log n), also for words of any length.
  void encode(std::string_view word, std::vector<std::int32_t>& out, Scratch& scratch) const;

 private:
  struct Rule {
    std::int32_t rank, result;
  };

  const Rule* find(std::int32_t left, std::int32_t right) const;
  void offer(std::int32_t position, Scratch& scratch) const;

  std::array<std::int32_t, 256> byte_ids_{};
  std::unordered_map<std::uint64_t, Rule> rules_;
};

}  // namespace ferry
