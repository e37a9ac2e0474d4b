// What generated text must match, as a caller says it.
#pragma once

#include <cstdint>
#include <string>

namespace ferry {

struct GrammarText {
  enum class Kind : std::uint8_t {
    json,            ///< any JSON object; needs no text
    json_schema,     ///< JSON that the schema allows
    regex,           ///< the whole text matches
    ebnf,            ///< xgrammar's, much as llama.cpp's GBNF
    structural_tag,  ///< xgrammar's: free text, tags and schemas one behind the other
  };

  Kind kind = Kind::json;
  std::string text = {};

  bool operator==(const GrammarText&) const = default;
};

}  // namespace ferry
