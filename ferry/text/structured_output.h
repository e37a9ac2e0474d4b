// What a client asks of the text's form, in the words of OpenAI (response_format), vLLM
// (structured_outputs, guided_...), SGLang (json_schema, regex, ebnf, structural_tag) and llama.cpp
// (grammar).
#pragma once

#include <optional>

#include "ferry/grammar_text.h"
#include "ferry/text/json_fields.h"

namespace ferry {

/// Throws ConfigError where it is of the wrong type, asked for twice, or this build has no
/// grammars.
std::optional<GrammarText> read_grammar(const JsonFields& fields);

}  // namespace ferry
