// Regular expressions as tokenizer.json means them (Oniguruma's dialect), run by PCRE2.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace ferry {

class ConfigReader;

/// Threads: const use from several is safe.
class Regex {
 public:
  /// Throws ModelError naming `file` and the pattern when it does not compile.
  Regex(std::string_view pattern, std::string file);

  /// A pattern that matches exactly this text.
  static Regex literal(std::string_view text, std::string file);

  /// The "pattern" of a part of tokenizer.json: {"Regex": ...} or {"String": ...}.
  static Regex from_json(const ConfigReader& part);

  /// Calls found(begin, end) for every match, left to right; empty matches are skipped. Throws
  /// ModelError when a match needs more backtracking than the library allows.
  /// REQUIRES: text is valid UTF-8.
  void for_each_match(std::string_view text,
                      const std::function<void(std::size_t, std::size_t)>& found) const;

  /// The text with every match replaced.
  std::string replace(std::string_view text, std::string_view with) const;

 private:
  struct Code;
  std::shared_ptr<const Code> code_;  // shared by copies of this object; immutable
  std::string file_;
};

}  // namespace ferry
