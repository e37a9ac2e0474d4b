// Counted repetitions of regular expressions, cut to a size that a grammar's compiler unrolls.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace ferry {

/// A regular expression of the same language in which no repetition that would be counted while a
/// text is read is left, but for those whose automaton would be too large; or the expression as it
/// is, also where it is none. xgrammar counts repetitions of more than 128, and every mask inside
/// one then tries the whole vocabulary; shorter ones are parts of an automaton, whose masks are
/// made once. `piece`: the longest repetition that may stay.
std::string with_short_repetitions(std::string_view regex, std::int64_t piece = 128);

}  // namespace ferry
