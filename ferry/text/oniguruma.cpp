#include "ferry/text/oniguruma.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <optional>
#include <utility>
#include <vector>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "ferry/core/error.h"
#include "ferry/text/utf8.h"

namespace ferry {

namespace {

using Named = std::pair<std::string_view, std::string_view>;

constexpr std::string_view kWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc})";
// Outside of brackets Oniguruma looks the first 256 characters up in a table of ISO 8859-1.
constexpr std::string_view kBareWord = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\xB2\xB3\xB9\xBC-\xBE)";
constexpr std::string_view kSpace = R"(\p{White_Space})";
constexpr std::string_view kHex = "0-9a-fA-F";

// What [:name:] stands for, as it stands inside of brackets.
constexpr std::array<Named, 14> kPosix = {
    {{"alnum", R"(\p{Alphabetic}\p{Nd})"},
     {"alpha", R"(\p{Alphabetic})"},
     {"ascii", R"(\x00-\x7F)"},
     {"blank", R"(\p{Zs}\t)"},
     {"cntrl", R"(\p{Cc})"},
     {"digit", R"(\p{Nd})"},
     {"graph", R"(\p{L}\p{M}\p{N}\p{P}\p{S}\p{Cf}\p{Co})"},
     {"lower", R"(\p{Lowercase})"},
     {"print", R"(\p{L}\p{M}\p{N}\p{P}\p{S}\p{Cf}\p{Co}\p{Zs})"},
     {"punct", R"(\p{P}\p{S})"},
     {"space", kSpace},
     {"upper", R"(\p{Uppercase})"},
     {"word", kWord},
     {"xdigit", kHex}}};

std::optional<std::string_view> posix_set(std::string_view name) {
  const auto it = std::find_if(
      kPosix.begin(), kPosix.end(), [&](const Named& entry) { return entry.first == name; });
  return it == kPosix.end() ? std::nullopt : std::optional(it->second);
}

/// \p{name} of the same names; these two differ from what the brackets have.
std::optional<std::string_view> property_set(std::string_view name) {
  std::string plain;
  for (const char c : name) {
    if (c != ' ' && c != '_' && c != '-') {
      plain += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    }
  }
  if (plain == "punct") return R"(\p{P})";
  if (plain == "word") return kBareWord;
  return posix_set(plain);
}

/// Whether \p{name} is about a script. PCRE2 then takes the characters that are used with it as
/// well; Oniguruma takes those that belong to it.
bool is_script(std::string_view name) {
  const std::string pattern = fmt::format("\\p{{sc:{}}}", name);
  int error = 0;
  PCRE2_SIZE offset = 0;
  pcre2_code* code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()),
                                   pattern.size(),
                                   PCRE2_UTF,
                                   &error,
                                   &offset,
                                   nullptr);
  pcre2_code_free(code);
  return code != nullptr;
}

/// Characters, as the inside of brackets, and patterns of one character each that brackets cannot
/// say; any of them matches.
struct CharacterSet {
  std::string items;
  std::vector<std::string> others;

  std::string pattern() const {
    if (others.empty()) return items.empty() ? "(?!)" : fmt::format("[{}]", items);
    std::string any = items.empty() ? "" : fmt::format("[{}]|", items);
    for (std::size_t i = 0; i < others.size(); ++i) any += (i > 0 ? "|" : "") + others[i];
    return fmt::format("(?:{})", any);
  }

  std::string negation() const {
    if (others.empty() && !items.empty()) return fmt::format("[^{}]", items);
    return fmt::format("(?:(?!{})(?s:.))", pattern());
  }
};

/// A set of characters as one of the items of brackets, or as a pattern of its own.
struct Said {
  std::string text;
  bool own = false;
};

class Translator {
 public:
  Translator(std::string_view pattern, const std::string& file) : pattern_(pattern), file_(file) {}

  std::string run() {
    while (!at_end()) {
      if (pattern_[at_] == '(') {
        open_group();
      } else if (pattern_[at_] == ')') {
        close_group();
      } else if (pattern_[at_] == '{' && copy_interval()) {
        continue;
      } else if (std::string_view("*+?").find(pattern_[at_]) != std::string_view::npos) {
        copy_quantifier();
      } else {
        begin_atom(out_.size());
        out_ += one_character();
      }
    }
    return std::move(out_);
  }

 private:
  template <typename... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> why, Args&&... args) const {
    fail<ModelError>(
        "{}: pattern {}: {}", file_, pattern_, fmt::format(why, std::forward<Args>(args)...));
  }

  bool at_end() const { return at_ >= pattern_.size(); }

  bool looking_at(std::string_view text) const { return pattern_.substr(at_).starts_with(text); }

  std::string_view take(std::size_t count) {
    const std::string_view taken = pattern_.substr(at_, count);
    at_ += taken.size();
    return taken;
  }

  /// To the next `last`, or all that is left.
  std::string_view take_through(char last) {
    const std::size_t end = pattern_.find(last, at_);
    return take(end == std::string_view::npos ? pattern_.size() : end - at_ + 1);
  }

  std::string_view take_while(std::string_view wanted, std::size_t most) {
    std::size_t count = 0;
    while (count < most && at_ + count < pattern_.size() &&
           wanted.find(pattern_[at_ + count]) != std::string_view::npos) {
      ++count;
    }
    return take(count);
  }

  std::string one_character() {
    if (pattern_[at_] == '[') return bracket();
    if (pattern_[at_] != '\\') return std::string(take(utf8_length(pattern_[at_])));
    if (auto set = escaped_set(false)) return std::move(set->text);
    if (looking_at("\\b") || looking_at("\\B")) {
      const bool edge = take(2)[1] == 'b';
      const std::string word = fmt::format("[{}]", kBareWord);
      return fmt::format(
          "(?:(?<={0})(?{1}{0})|(?<!{0})(?{2}{0}))", word, edge ? "!" : "=", edge ? "=" : "!");
    }
    if (looking_at("\\O")) {
      take(2);
      return "(?s:.)";
    }
    return escaped_character();
  }

  /// \n, \x41, \u0041, \1 and whatever else means the same in both.
  std::string escaped_character() {
    constexpr std::string_view kDigits = "0123456789abcdefABCDEF";
    if (at_ + 1 >= pattern_.size()) return std::string(take(1));  // does not compile
    const std::string_view start = take(1 + utf8_length(pattern_[at_ + 1]));
    if (start == "\\u") return fmt::format("\\x{{{}}}", take_while(kDigits, 4));
    std::string all(start);
    if (start == "\\x" && looking_at("{")) {
      all += take_through('}');
    } else if (start == "\\x") {
      all += take_while(kDigits, 2);
    } else if (std::isdigit(static_cast<unsigned char>(start[1])) != 0) {
      all += take_while("0123456789", 2);
    }
    return all;
  }

  /// The set that an escape stands for, for the inside of brackets or not; or nothing, and nothing
  /// is taken.
  std::optional<Said> escaped_set(bool inside) {
    if (at_ + 1 >= pattern_.size()) return std::nullopt;
    const char kind = pattern_[at_ + 1];
    std::string_view items;
    bool negated = kind == 'S' || kind == 'W' || kind == 'H' || kind == 'D';
    if (kind == 's' || kind == 'S') {
      items = kSpace;
    } else if (kind == 'w' || kind == 'W') {
      items = inside ? kWord : kBareWord;
    } else if (kind == 'h' || kind == 'H') {
      items = kHex;
    } else if (kind == 'd' || kind == 'D') {
      items = R"(\p{Nd})";
    } else if (kind == 'p' || kind == 'P') {
      return property(inside);
    } else {
      return std::nullopt;
    }
    take(2);
    return said(items, negated, inside);
  }

  /// At \p or \P.
  Said property(bool inside) {
    bool negated = pattern_[at_ + 1] == 'P';
    take(2);
    if (!looking_at("{")) return {fmt::format("\\{}{}", negated ? 'P' : 'p', take(1))};
    const std::size_t end = pattern_.find('}', at_);
    if (end == std::string_view::npos) refuse("a {{ without its }}");
    std::string_view name = take(end + 1 - at_);
    name = name.substr(1, name.size() - 2);
    if (name.starts_with('^')) {
      negated = !negated;
      name.remove_prefix(1);
    }
    if (const auto items = property_set(name)) return said(*items, negated, inside);
    return {fmt::format("\\{}{{{}{}}}", negated ? 'P' : 'p', is_script(name) ? "sc:" : "", name)};
  }

  static Said said(std::string_view items, bool negated, bool inside) {
    // One property has its opposite, a list of them has none inside of brackets.
    const bool single = items.starts_with("\\p{") && items.find('}') == items.size() - 1;
    if (single) return {fmt::format("\\{}{}", negated ? 'P' : 'p', items.substr(2))};
    if (inside && !negated) return {std::string(items)};
    return {fmt::format("[{}{}]", negated ? "^" : "", items), true};
  }

  /// At [.
  std::string bracket() {
    const auto [set, negated] = character_class();
    return negated ? set.negation() : set.pattern();
  }

  std::pair<CharacterSet, bool> character_class() {
    if (++depth_ > 100) refuse("classes nest deeper than 100 levels");
    take(1);
    const bool negated = looking_at("^");
    take(negated ? 1 : 0);
    std::optional<std::string> common;  // of what is before the last &&
    CharacterSet set;
    bool single = false;  // what was last is one character, from which a range may start
    for (bool first = true; first || !looking_at("]"); first = false) {
      if (at_end()) refuse("a [ without its ]");
      if (looking_at("&&")) {
        take(2);
        common = in_common(common, std::exchange(set, {}));
        single = false;
      } else if (looking_at("[")) {
        add_class(set);
        single = false;
      } else if (add_named(set)) {
        single = false;
      } else {
        single = add_character(set, single);
      }
    }
    take(1);
    --depth_;
    if (!common) return {set, negated};
    return {CharacterSet{.items = "", .others = {in_common(common, set)}}, negated};
  }

  static std::string in_common(const std::optional<std::string>& before, const CharacterSet& set) {
    return before ? fmt::format("(?:(?={}){})", *before, set.pattern()) : set.pattern();
  }

  /// [:name:] or a class in a class.
  void add_class(CharacterSet& set) {
    const std::size_t end = pattern_.find(":]", at_);
    if (looking_at("[:") && end != std::string_view::npos) {
      std::string_view name = pattern_.substr(at_ + 2, end - at_ - 2);
      const bool negated = name.starts_with('^');
      if (negated) name.remove_prefix(1);
      const auto items = posix_set(name);
      if (!items) refuse("there is no [:{}:]", name);
      at_ = end + 2;
      add(set, said(*items, negated, true));
      return;
    }
    const auto [inner, negated] = character_class();
    if (!negated && inner.others.empty()) {
      set.items += inner.items;
    } else {
      set.others.push_back(negated ? inner.negation() : inner.pattern());
    }
  }

  static void add(CharacterSet& set, const Said& said) {
    if (said.own) {
      set.others.push_back(said.text);
    } else {
      set.items += said.text;
    }
  }

  bool add_named(CharacterSet& set) {
    if (pattern_[at_] != '\\') return false;
    const auto found = escaped_set(true);
    if (found) add(set, *found);
    return found.has_value();
  }

  /// Whether a range may start from what was added.
  bool add_character(CharacterSet& set, bool after_single) {
    const char c = pattern_[at_];
    if (c == '\\') {
      set.items += escaped_character();
      return true;
    }
    if (c == '-') {
      take(1);
      constexpr std::string_view kSets = "sSwWhHdDpP";
      const bool set_follows = looking_at("\\") && at_ + 1 < pattern_.size() &&
                               kSets.find(pattern_[at_ + 1]) != std::string_view::npos;
      const bool range =
          after_single && !set_follows && !looking_at("]") && !looking_at("[") && !looking_at("&&");
      set.items += range ? "-" : "\\-";
      if (!range) return true;
      set.items += looking_at("\\") ? escaped_character() : plain_character();
      return false;
    }
    set.items += plain_character();
    return true;
  }

  /// What would mean something else at another place in brackets gets a backslash.
  std::string plain_character() {
    if (at_end()) refuse("a [ without its ]");
    const bool sign = std::string_view("^]-").find(pattern_[at_]) != std::string_view::npos;
    return fmt::format("{}{}", sign ? "\\" : "", take(utf8_length(pattern_[at_])));
  }

  void open_group() {
    const std::size_t start = out_.size();
    if (looking_at("(?#")) {
      out_ += take_through(')');
      return;
    }
    out_ += take(1);
    if (!looking_at("?")) {
      groups_.push_back(start);
      return;
    }
    out_ += take(1);
    std::string_view options = take_while("imx-", pattern_.size());
    for (const char option : options) out_ += option == 'm' ? 's' : option;
    const bool letter = !at_end() && std::isalpha(static_cast<unsigned char>(pattern_[at_])) != 0;
    if (letter || (!options.empty() && !looking_at(":") && !looking_at(")"))) {
      refuse("there is no group option {}", take(1));
    }
    if (!options.empty() && looking_at(")")) {
      out_ += take(1);  // for the rest of the group that this stands in
      return;
    }
    // ?: ?= ?! ?> ?<= ?<! ?<name>
    while (!at_end() && std::string_view(":=!><").find(pattern_[at_]) != std::string_view::npos) {
      out_ += take(1);
    }
    groups_.push_back(start);
  }

  void close_group() {
    out_ += take(1);
    if (groups_.empty()) return;  // does not compile
    begin_atom(groups_.back());
    groups_.pop_back();
  }

  void begin_atom(std::size_t start) {
    atom_ = start;
    repeated_ = false;
  }

  /// Before a quantifier. What is repeated already is repeated as a whole, which PCRE2 wants a
  /// group for.
  void begin_quantifier() {
    if (repeated_) out_ = fmt::format("{}(?:{})", out_.substr(0, atom_), out_.substr(atom_));
    repeated_ = true;
  }

  /// *, + or ?, with a ? (as few as possible) or + (nothing given back) behind it.
  void copy_quantifier() {
    begin_quantifier();
    out_ += take(1);
    if (looking_at("?") || looking_at("+")) out_ += take(1);
  }

  /// {n}, {n,}, {,m} or {n,m}; all else is text. Behind it + is one more repetition, and so is ?
  /// but for as few as possible of {n,m}.
  bool copy_interval() {
    constexpr std::string_view kDigits = "0123456789";
    const std::size_t start = at_;
    take(1);
    const std::string_view least = take_while(kDigits, pattern_.size());
    const bool comma = looking_at(",");
    take(comma ? 1 : 0);
    const std::string_view most = take_while(kDigits, pattern_.size());
    if (!looking_at("}") || (least.empty() && most.empty())) {
      at_ = start;
      begin_atom(out_.size());
      out_ += "\\{";
      take(1);
      return true;
    }
    take(1);
    begin_quantifier();
    out_ += fmt::format("{{{}{}{}}}", least.empty() ? "0" : least, comma ? "," : "", most);
    if (looking_at("?") && comma) out_ += take(1);
    return true;
  }

  std::string_view pattern_;
  const std::string& file_;
  std::size_t at_ = 0;
  std::string out_;
  std::size_t atom_ = 0;             // where in out_ starts what a quantifier would repeat
  bool repeated_ = false;            // whether one does already
  std::vector<std::size_t> groups_;  // where those start that are open
  int depth_ = 0;                    // of classes
};

}  // namespace

std::string oniguruma_to_pcre2(std::string_view pattern, const std::string& file) {
  return Translator(pattern, file).run();
}

}  // namespace ferry
