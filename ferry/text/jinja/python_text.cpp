#include "ferry/text/jinja/python_text.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstring>

#include "ferry/text/utf8.h"

namespace ferry {

namespace {

/// Python's quotes: single, unless the text has single ones and no double ones.
std::string repr_text(std::string_view text) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const char quote = has_single && text.find('"') == std::string_view::npos ? '"' : '\'';
  std::string out(1, quote);
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const char32_t c = char_at(text, i);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      out += '\\';
      out += static_cast<char>(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (is_printable(c)) {
      out += text.substr(i, utf8_length(text[i]));
    } else {
      const auto code = static_cast<std::uint32_t>(c);
      out += code < 0x100     ? fmt::format("\\x{:02x}", code)
             : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                              : fmt::format("\\U{:08x}", code);
    }
  }
  return out + quote;
}

std::string repr(const JinjaValue& value);

std::string repr_list(const JinjaList& list) {
  const bool tuple = list.kind == JinjaList::Kind::tuple;
  std::string out = tuple ? "(" : "[";
  for (std::size_t i = 0; i < list.items.size(); ++i) {
    if (i > 0) out += ", ";
    out += repr(list.items[i]);
  }
  if (tuple && list.items.size() == 1) out += ',';
  return out + (tuple ? ")" : "]");
}

std::string repr(const JinjaValue& value) {
  if (value.is_undefined()) return "Undefined";
  if (const auto* v = value.text()) return repr_text(*v);
  if (const auto* v = value.list()) return repr_list(*v);
  if (const auto* v = value.dict()) {
    std::string out = "{";
    for (const auto& [key, item] : v->entries()) {
      if (out.size() > 1) out += ", ";
      out += repr(to_jinja(key)) + ": " + repr(item);
    }
    return out + "}";
  }
  return python_str(value);
}

void json_text(std::string_view text, bool ensure_ascii, std::string& out) {
  constexpr std::string_view kEscaped = "\"\\\n\r\t\f\b";
  constexpr std::string_view kLetters = "\"\\nrtfb";
  out += '"';
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const auto c = static_cast<std::uint32_t>(char_at(text, i));
    if (const std::size_t known = c < 0x80 ? kEscaped.find(static_cast<char>(c)) : kEscaped.npos;
        known != kEscaped.npos) {
      out += '\\';
      out += kLetters[known];
    } else if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
      out += fmt::format("\\u{:04x}", c);
    } else if (ensure_ascii && c >= 0x10000) {
      out += fmt::format(
          "\\u{:04x}\\u{:04x}", 0xD800 + ((c - 0x10000) >> 10), 0xDC00 + ((c - 0x10000) & 0x3FF));
    } else {
      out += text.substr(i, utf8_length(text[i]));
    }
  }
  out += '"';
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}

  std::string take() { return std::move(out_); }

  void put(const JinjaValue& value, int level);

 private:
  template <class Items, class Put>
  void container(char open, char close, const Items& items, int level, const Put& put_item);
  void new_line(int level);

  const JsonStyle& style_;
  std::string out_;
};

void JsonWriter::new_line(int level) {
  if (!style_.indent) return;
  out_ += '\n';
  for (int i = 0; i < level; ++i) out_ += *style_.indent;
}

template <class Items, class Put>
void JsonWriter::container(
    char open, char close, const Items& items, int level, const Put& put_item) {
  out_ += open;
  bool first = true;
  for (const auto& item : items) {
    if (!first) out_ += style_.item_separator;
    first = false;
    new_line(level + 1);
    put_item(item);
  }
  if (!first) new_line(level);
  out_ += close;
}

void JsonWriter::put(const JinjaValue& value, int level) {
  if (value.is_none()) {
    out_ += "null";
  } else if (const auto* b = value.boolean()) {
    out_ += *b ? "true" : "false";
  } else if (const auto* r = value.real()) {
    out_ += std::isnan(*r)   ? "NaN"
            : std::isinf(*r) ? (*r > 0 ? "Infinity" : "-Infinity")
                             : python_float(*r);
  } else if (value.integer() != nullptr) {
    out_ += python_str(value);
  } else if (const auto* t = value.text()) {
    json_text(*t, style_.ensure_ascii, out_);
  } else if (value.list() != nullptr && value.list()->kind != JinjaList::Kind::stream) {
    container('[', ']', value.list()->items, level, [&](const JinjaValue& item) {
      put(item, level + 1);
    });
  } else if (const auto* d = value.dict()) {
    std::vector<const JinjaDict::Entry*> entries;
    for (const auto& entry : d->entries()) entries.push_back(&entry);
    if (style_.sort_keys) {
      std::sort(entries.begin(), entries.end(), [](const auto* x, const auto* y) {
        if (x->first.index() != y->first.index())
          throw JinjaFailure("keys of two kinds have no order");
        return x->first < y->first;
      });
    }
    container('{', '}', entries, level, [&](const JinjaDict::Entry* entry) {
      json_text(python_str(to_jinja(entry->first)), style_.ensure_ascii, out_);
      out_ += style_.key_separator;
      put(entry->second, level + 1);
    });
  } else {
    value.require_defined();
    throw JinjaFailure(fmt::format("a {} cannot be written as JSON", value.type_name()));
  }
}

/// The white space that separates words, as str.split() sees it.
std::size_t space_end(std::string_view text, std::size_t at) {
  while (at < text.size() && is_python_space(char_at(text, at))) at += utf8_length(text[at]);
  return at;
}

std::size_t word_end(std::string_view text, std::size_t at) {
  while (at < text.size() && !is_python_space(char_at(text, at))) at += utf8_length(text[at]);
  return at;
}

std::vector<std::string> split_words(std::string_view text, std::int64_t limit, bool from_right) {
  using Word = std::pair<std::size_t, std::size_t>;
  std::vector<Word> words;
  for (std::size_t at = space_end(text, 0); at < text.size();) {
    const std::size_t end = word_end(text, at);
    words.emplace_back(at, end);
    at = space_end(text, end);
  }
  const auto most = limit < 0 ? words.size() + 1 : static_cast<std::size_t>(limit) + 1;
  // The last of the most pieces is what remains, with the white space at its far end.
  if (words.size() >= most && from_right) {
    words.erase(words.begin(), words.end() - static_cast<std::ptrdiff_t>(most));
    words.front().first = 0;
  } else if (words.size() >= most) {
    words.resize(most);
    words.back().second = text.size();
  }
  std::vector<std::string> out;
  for (const auto& [begin, end] : words) out.emplace_back(text.substr(begin, end - begin));
  return out;
}

bool is_line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

std::string python_str(const JinjaValue& value) {
  if (value.is_undefined()) return "";
  if (value.is_none()) return "None";
  if (const auto* v = value.boolean()) return *v ? "True" : "False";
  if (const auto* v = value.integer()) return std::to_string(*v);
  if (const auto* v = value.real()) return python_float(*v);
  if (const auto* v = value.text()) return *v;
  const bool stream = value.list() != nullptr && value.list()->kind == JinjaList::Kind::stream;
  if (stream || value.object() != nullptr || value.function() != nullptr) {
    throw JinjaFailure(fmt::format("a {} has no text of its own", value.type_name()));
  }
  return repr(value);
}

std::string python_repr(const JinjaValue& value) { return repr(value); }

std::string python_json(const JinjaValue& value, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.put(value, 0);
  return writer.take();
}

std::string python_float(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  std::array<char, 64> buffer{};
  const double size = std::abs(value);
  // Exponents outside of -4 to 15 are written out.
  const bool plain = size == 0 || (size >= 1e-4 && size < 1e16);
  const auto format = plain ? std::chars_format::fixed : std::chars_format::scientific;
  const auto end = std::to_chars(buffer.data(), buffer.data() + buffer.size(), value, format).ptr;
  std::string text(buffer.data(), end);
  return plain && text.find('.') == std::string::npos ? text + ".0" : text;
}

std::string_view python_strip(std::string_view text,
                              std::optional<std::string_view> chars,
                              bool left,
                              bool right) {
  const auto goes = [&](std::size_t at) {
    if (!chars) return is_python_space(char_at(text, at));
    return chars->find(text.substr(at, utf8_length(text[at]))) != std::string_view::npos;
  };
  std::size_t begin = 0;
  while (left && begin < text.size() && goes(begin)) begin += utf8_length(text[begin]);
  std::size_t end = text.size();
  while (right && end > begin) {
    std::size_t last = end - 1;
    while (last > begin && (static_cast<unsigned char>(text[last]) & 0xC0) == 0x80) --last;
    if (!goes(last)) break;
    end = last;
  }
  return text.substr(begin, end - begin);
}

std::string python_upper(std::string_view text) {
  constexpr char32_t kSharpS = 0xDF;
  std::string out;
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    const char32_t c = char_at(text, i);
    if (c == kSharpS)
      out += "SS";
    else
      append_utf8(upper_case(c), out);
  }
  return out;
}

std::string python_lower(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); i += utf8_length(text[i])) {
    append_utf8(lower_case(char_at(text, i)), out);
  }
  return out;
}

std::string python_capitalize(std::string_view text) {
  if (text.empty()) return "";
  const std::size_t first = utf8_length(text[0]);
  return python_upper(text.substr(0, first)) + python_lower(text.substr(first));
}

std::size_t find_text(std::string_view text, std::string_view what, std::size_t from) {
  if (from > text.size()) return std::string_view::npos;
  // memmem searches in linear time, which std::string does not promise.
  const void* found = memmem(text.data() + from, text.size() - from, what.data(), what.size());
  return found == nullptr ? std::string_view::npos
                          : static_cast<std::size_t>(static_cast<const char*>(found) - text.data());
}

std::size_t count_text(std::string_view text, std::string_view what) {
  if (what.empty()) return length(text) + 1;
  std::size_t count = 0;
  for (std::size_t at = find_text(text, what); at != std::string_view::npos;
       at = find_text(text, what, at + what.size())) {
    ++count;
  }
  return count;
}

std::string python_replace(std::string_view text,
                           std::string_view from,
                           std::string_view to,
                           std::int64_t count) {
  std::string out;
  std::size_t at = 0;
  if (from.empty()) {  // between all characters, and around them
    for (; count != 0; --count) {
      out += to;
      if (at >= text.size()) return out;
      out += text.substr(at, utf8_length(text[at]));
      at += utf8_length(text[at]);
    }
    return out += text.substr(at);
  }
  for (; count != 0; --count) {
    const std::size_t found = find_text(text, from, at);
    if (found == std::string_view::npos) break;
    out += text.substr(at, found - at);
    out += to;
    at = found + from.size();
  }
  return out += text.substr(at);
}

std::vector<std::string> python_split(std::string_view text,
                                      std::optional<std::string_view> separator,
                                      std::int64_t limit,
                                      bool from_right) {
  if (!separator) return split_words(text, limit, from_right);
  std::vector<std::string> out;
  if (from_right) {
    for (; limit != 0; --limit) {
      const std::size_t found = text.rfind(*separator);
      if (found == std::string_view::npos) break;
      out.emplace_back(text.substr(found + separator->size()));
      text = text.substr(0, found);
    }
    out.emplace_back(text);
    std::reverse(out.begin(), out.end());
    return out;
  }
  std::size_t at = 0;
  for (; limit != 0; --limit) {
    const std::size_t found = find_text(text, *separator, at);
    if (found == std::string_view::npos) break;
    out.emplace_back(text.substr(at, found - at));
    at = found + separator->size();
  }
  out.emplace_back(text.substr(at));
  return out;
}

std::vector<std::string> python_split_lines(std::string_view text) {
  std::vector<std::string> lines;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < text.size();) {
    const std::size_t next = i + utf8_length(text[i]);
    if (!is_line_end(char_at(text, i))) {
      i = next;
      continue;
    }
    lines.emplace_back(text.substr(begin, i - begin));
    begin = i = text[i] == '\r' && next < text.size() && text[next] == '\n' ? next + 1 : next;
  }
  if (begin < text.size()) lines.emplace_back(text.substr(begin));
  return lines;
}

std::string python_strftime(const std::string& format, std::time_t when) {
  constexpr std::size_t kLongest = 4096;
  std::tm local{};
  if (format.empty()) return "";
  if (localtime_r(&when, &local) == nullptr) throw JinjaFailure("strftime_now: no such time");
  std::array<char, kLongest> buffer{};
  // A mark in front: strftime says 0 both for nothing and for too much.
  const std::size_t n = std::strftime(buffer.data(), buffer.size(), (" " + format).c_str(), &local);
  if (n == 0) throw JinjaFailure("strftime_now: the format gives too long a text");
  return repair_utf8(std::string_view(buffer.data() + 1, n - 1));
}

}  // namespace ferry
