// Byte-pair encoding of one word: merges the neighbours with the lowest rank until none is left.
// Words begin as bytes, or as characters of which those without a token become bytes or unknown.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
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
    std::int32_t rank;                 // the lowest is merged first
  };

  /// The tokens of single characters.
  struct Characters {
    std::unordered_map<char32_t, std::int32_t> ids;
    std::optional<std::array<std::int32_t, 256>> byte_ids;  // for characters without one
    std::int32_t unknown = -1;  // for what has neither; -1: it is left out
    bool fuse_unknown = false;  // one for any number in a row
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
  /// byte_ids: the token of each single byte. Of two merges of one pair the last counts.
  Bpe(const std::array<std::int32_t, 256>& byte_ids, const std::vector<Merge>& merges);
  Bpe(Characters characters, const std::vector<Merge>& merges);

  /// Appends the tokens of a word. O(n log n), also for words of any length.
  void encode(std::string_view word, std::vector<std::int32_t>& out, Scratch& scratch) const;

 private:
  struct Rule {
    std::int32_t rank, result;
  };

  const Rule* find(std::int32_t left, std::int32_t right) const;
  void add_rules(const std::vector<Merge>& merges);
  void begin(std::string_view word, std::vector<Scratch::Symbol>& symbols) const;
  void begin_character(std::string_view character, std::vector<Scratch::Symbol>& symbols) const;
  void offer(std::int32_t position, Scratch& scratch) const;

  std::array<std::int32_t, 256> byte_ids_{};
  std::optional<Characters> characters_;  // without: bytes
  std::unordered_map<std::uint64_t, Rule> rules_;
};

}  // namespace ferry
