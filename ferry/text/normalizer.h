// What tokenizer.json's "normalizer" does to text before it is cut.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/text/regex.h"

namespace ferry {

/// NFC, Prepend, Replace, or a Sequence of them. Threads: const use is safe.
class Normalizer {
 public:
  /// Does nothing.
  Normalizer() = default;

  /// Throws ModelError naming `file` and the part that is not supported.
  Normalizer(const nlohmann::json& description, const std::string& file);

  bool empty() const { return steps_.empty(); }

  /// REQUIRES: valid UTF-8.
  std::string normalize(std::string_view text) const;

 private:
  struct Step {
    enum class Kind { nfc, prepend, replace };
    Kind kind;
    std::string text;             // what is prepended, or put in place
    std::vector<Regex> replaced;  // one for replace, else none
  };

  void add(const nlohmann::json& description, const std::string& file);

  std::vector<Step> steps_;
};

}  // namespace ferry
