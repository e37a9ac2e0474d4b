#include "ferry/text/utf8.h"

#include <utf8proc.h>

#include <algorithm>
#include <vector>

#include "ferry/core/error.h"

namespace ferry {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

unsigned needed_after(unsigned char first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return 2;
  if (first >= 0xE0 && first <= 0xEF) return 3;
  if (first >= 0xF0 && first <= 0xF4) return 4;
  return 0;  // a continuation byte, or one that no UTF-8 has
}

/// Canonical decomposition, marks in the order they come.
std::vector<utf8proc_int32_t> decompose(std::string_view text) {
  constexpr auto options = static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_DECOMPOSE);
  std::vector<utf8proc_int32_t> chars;
  chars.reserve(text.size());
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    utf8proc_int32_t parts[8];  // no character has more than 4
    const auto c = static_cast<utf8proc_int32_t>(char_at(text, i));
    const auto n = utf8proc_decompose_char(c, parts, 8, options, nullptr);
    if (n < 0 || n > 8) fail<Error>("text cannot be normalised: U+{:04X}", c);
    chars.insert(chars.end(), parts, parts + n);
  }
  return chars;
}

/// Sorts every run of combining marks by class, stably.
void order_marks(std::vector<utf8proc_int32_t>& chars) {
  const auto class_of = [](utf8proc_int32_t c) {
    return utf8proc_get_property(c)->combining_class;
  };
  auto at = chars.begin();
  while (at != chars.end()) {
    if (class_of(*at) == 0) {
      ++at;
      continue;
    }
    const auto end =
        std::find_if(at, chars.end(), [&](utf8proc_int32_t c) { return class_of(c) == 0; });
    std::stable_sort(
        at, end, [&](utf8proc_int32_t a, utf8proc_int32_t b) { return class_of(a) < class_of(b); });
    at = end;
  }
}

}  // namespace

bool Utf8Repair::may_follow(unsigned char byte) const {
  if (held_count_ != 1) return byte >= 0x80 && byte <= 0xBF;
  // The second byte rules out overlong forms, surrogates and what lies above U+10FFFF.
  switch (static_cast<unsigned char>(held_[0])) {
    case 0xE0:
      return byte >= 0xA0 && byte <= 0xBF;
    case 0xED:
      return byte >= 0x80 && byte <= 0x9F;
    case 0xF0:
      return byte >= 0x90 && byte <= 0xBF;
    case 0xF4:
      return byte >= 0x80 && byte <= 0x8F;
    default:
      return byte >= 0x80 && byte <= 0xBF;
  }
}

void Utf8Repair::put(std::string_view bytes, std::string& out) {
  for (const char c : bytes) {
    const auto byte = static_cast<unsigned char>(c);
    if (held_count_ > 0) {
      if (may_follow(byte)) {
        held_[held_count_++] = c;
        if (held_count_ == needed_) {
          out.append(held_, held_count_);
          held_count_ = 0;
        }
        continue;
      }
      finish(out);  // and look at this byte as the first of a character
    }
    needed_ = needed_after(byte);
    if (needed_ == 1) {
      out += c;
    } else if (needed_ == 0) {
      out += kReplacement;
    } else {
      held_[held_count_++] = c;
    }
  }
}

void Utf8Repair::finish(std::string& out) {
  if (held_count_ > 0) out += kReplacement;
  held_count_ = 0;
}

std::string repair_utf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  Utf8Repair repair;
  repair.put(text, out);
  repair.finish(out);
  return out;
}

std::string normalize_nfc(std::string_view text) {
  const bool ascii = std::all_of(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  if (ascii) return std::string(text);
  // Not utf8proc_map: it puts marks in order by insertion, quadratic in their number.
  std::vector<utf8proc_int32_t> chars = decompose(text);
  order_marks(chars);
  const auto n =
      utf8proc_normalize_utf32(chars.data(),
                               static_cast<utf8proc_ssize_t>(chars.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  if (n < 0) fail<Error>("text cannot be normalised: {}", utf8proc_errmsg(n));
  std::string result;
  result.reserve(text.size());
  for (utf8proc_ssize_t i = 0; i < n; ++i) {
    append_utf8(static_cast<char32_t>(chars[static_cast<std::size_t>(i)]), result);
  }
  return result;
}

std::size_t utf8_length(char first) {
  return std::max(1U, needed_after(static_cast<unsigned char>(first)));
}

char32_t char_at(std::string_view text, std::size_t at) {
  utf8proc_int32_t c = 0;
  if (at >= text.size()) return 0;
  utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at,
                   static_cast<utf8proc_ssize_t>(text.size() - at),
                   &c);
  return static_cast<char32_t>(std::max(c, 0));
}

char32_t char_before(std::string_view text, std::size_t at) {
  if (at == 0) return 0;
  do {
    --at;
  } while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80);
  return char_at(text, at);
}

void append_utf8(char32_t c, std::string& out) {
  utf8proc_uint8_t bytes[4];
  const auto n = utf8proc_encode_char(static_cast<utf8proc_int32_t>(c), bytes);
  out.append(reinterpret_cast<const char*>(bytes), static_cast<std::size_t>(n));
}

bool is_word_char(char32_t c) {
  if (c == 0x200C || c == 0x200D) return true;  // joiners
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool is_letter(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool is_printable(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  const bool separator = category >= UTF8PROC_CATEGORY_ZS && category <= UTF8PROC_CATEGORY_ZP;
  const bool other = category >= UTF8PROC_CATEGORY_CC || category == UTF8PROC_CATEGORY_CN;
  return c == ' ' || (!separator && !other);
}

char32_t upper_case(char32_t c) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)));
}

char32_t lower_case(char32_t c) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

}  // namespace ferry
