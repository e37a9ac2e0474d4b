// Patterns in Oniguruma's Ruby dialect, in which tokenizer.json is written, said in PCRE2's.
#pragma once

#include <string>
#include <string_view>

namespace ferry {

/// A pattern that PCRE2 (UTF, UCP, MULTILINE) matches where Oniguruma matches `pattern`. What both
/// understand alike stays as it is; so does what PCRE2 does not compile. Different are:
///
///   \s \w \h \b, [:name:], \p{name}   other characters: h is a hexadecimal digit, marks are words
///   [a[bc]], [a-z&&[^aeiou]]          classes in classes and what they have in common
///   x{1,3}+, x{2}?, x{,3}             (x{1,3})+, (x{2})?, x{0,3}
///   (?m:.), \u00e9, \O                . matches a line's end; characters by number; any character
///
/// Source: doc/RE of Oniguruma 6.9; the sets of characters by what Hugging Face's tokenizers match.
/// Throws ModelError naming `file` and the pattern for brackets that do not close and for names
/// that Oniguruma does not know either.
std::string oniguruma_to_pcre2(std::string_view pattern, const std::string& file);

}  // namespace ferry
