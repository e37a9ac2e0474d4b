// Cuts text into the words that BPE works on, as tokenizer.json's "pre_tokenizer" says.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ferry/model/regex.h"

namespace ferry {

/// Split, Digits, ByteLevel, or a Sequence that ends with ByteLevel. Threads: const use is safe.
class PreTokenizer {
 public:
  /// Throws ModelError naming `file` and the part that is not supported.
  PreTokenizer(const nlohmann::json& description, const std::string& file);

  /// Calls word() for every word of `text`, in order. Words are not empty; their bytes are plain
  /// UTF-8 (the byte-to-letter disguise of ByteLevel exists only in the vocabulary).
  /// REQUIRES: text is valid UTF-8.
  void split(std::string_view text, const std::function<void(std::string_view)>& word) const;

 private:
  enum class Behavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

  struct Step {
    Regex pattern;
    Behavior behavior = Behavior::isolated;
    bool invert = false;
    bool prefix_space = false;  // put a space before a piece that has none, then cut
  };

  struct Piece {
    std::size_t begin, end;
    bool match;
  };

  void add(const nlohmann::json& description, const std::string& file);
  void add_split(const nlohmann::json& description, const std::string& file);
  void add_byte_level(const nlohmann::json& description, const std::string& file);
  static std::vector<Piece> cut(const Step& step, std::string_view text);
  static std::vector<Piece> merge(std::vector<Piece> pieces, Behavior behavior);
  void run(std::size_t step,
           std::string_view text,
           const std::function<void(std::string_view)>& word) const;

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace ferry
