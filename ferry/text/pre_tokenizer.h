// Cuts text into the words that BPE works on, as tokenizer.json's "pre_tokenizer" says.
#pragma once

#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ferry/text/regex.h"

namespace ferry {

/// None, Split, Digits, Metaspace, ByteLevel, or a Sequence of them in which ByteLevel comes last.
/// Threads: const use is safe.
class PreTokenizer {
 public:
  /// Throws ModelError naming `file` and the part that is not supported.
  PreTokenizer(const nlohmann::json& description, const std::string& file);

  /// One that cuts at every match of a pattern, and whose words are bytes.
  explicit PreTokenizer(Regex pattern);

  /// Whether words are read as bytes (ByteLevel); else as characters.
  bool byte_level() const { return byte_level_; }

  /// Calls word() for every word of `text`, in order. Words are not empty; their bytes are plain
  /// UTF-8 (the byte-to-letter disguise of ByteLevel exists only in the vocabulary).
  /// `at_start`: nothing comes before `text`, which is where Metaspace may put its space.
  /// REQUIRES: text is valid UTF-8.
  void split(std::string_view text,
             bool at_start,
             const std::function<void(std::string_view)>& word) const;

 private:
  enum class Behavior { isolated, removed, merged_with_previous, merged_with_next, contiguous };

  /// Which pieces get a space in front, unless they have one.
  enum class Prefix { none, first, all };

  struct Step {
    Regex pattern;
    Behavior behavior = Behavior::isolated;
    bool invert = false;
    Prefix prefix = Prefix::none;
    std::string space = " ";  // what spaces become before the piece is cut
  };

  struct Piece {
    std::size_t begin, end;
    bool match;
  };

  void add(const nlohmann::json& description, const std::string& file);
  void add_split(const nlohmann::json& description, const std::string& file);
  void add_byte_level(const nlohmann::json& description, const std::string& file);
  void add_metaspace(const nlohmann::json& description, const std::string& file);
  static std::vector<Piece> cut(const Step& step, std::string_view text);
  static std::vector<Piece> merge(std::vector<Piece> pieces, Behavior behavior);
  void run(std::size_t step,
           std::string_view text,
           bool at_start,
           const std::function<void(std::string_view)>& word) const;

  std::vector<Step> steps_;
  bool byte_level_ = false;
};

}  // namespace ferry
