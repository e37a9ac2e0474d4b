// Tokens that are found in the text as they stand, before anything else cuts it.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace ferry {

struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = false;      ///< markup, left out of decoded text on request
  bool single_word = false;  ///< counts only between non-word characters
  bool lstrip = false;       ///< swallows the white space before it
  bool rstrip = false;       ///< and after it
  bool normalized = true;    ///< looked for in the normalised text
};

/// Finds tokens of a set in text: leftmost first, of those the longest. Threads: const use is safe.
class AddedTokenMatcher {
 public:
  /// `text` is what is looked for, the content or its normal form. REQUIRES: not empty.
  void add(const AddedToken& token, std::string_view text);

  /// Calls plain(piece) and token(id) so that together they cover the text in order.
  void split(std::string_view text,
             const std::function<void(std::string_view)>& plain,
             const std::function<void(std::int32_t)>& token) const;

 private:
  struct Node {
    std::map<char, std::int32_t> next;
    std::int32_t token = -1;  // index into tokens_
  };

  struct Flags {
    std::int32_t id;
    bool single_word, lstrip, rstrip;
  };

  std::int32_t longest_at(std::string_view text, std::size_t at, std::size_t& end) const;

  std::vector<Node> nodes_{1};
  std::vector<Flags> tokens_;
};

}  // namespace ferry
