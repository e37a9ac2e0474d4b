#include "ferry/text/short_repetitions.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <optional>
#include <vector>

namespace ferry {

namespace {

/// Of an expression's automaton, about. Up to here one is made no later than what counts: a
/// repetition of 1,000 takes 0.17 s cut and 0.27 s counted.
constexpr std::int64_t kMostStates = 4096;

struct Bounds {
  std::int64_t least = 0;
  std::int64_t most = 0;  // -1: any number
  std::size_t bytes = 0;  // of "{least,most}", with a "?" behind it, which changes no language
};

std::string once(std::string_view what, const Bounds& bounds) {
  if (bounds.most == bounds.least) return fmt::format("{}{{{}}}", what, bounds.least);
  if (bounds.most < 0) return fmt::format("{}{{{},}}", what, bounds.least);
  return fmt::format("{}{{{},{}}}", what, bounds.least, bounds.most);
}

/// What is repeated, in pieces: those that must come, then those that may.
std::string in_pieces(std::string_view what, Bounds left, std::int64_t piece) {
  std::string pieces = "(?:";
  std::string behind = ")";
  while (std::max(left.least, left.most) > piece) {
    if (left.least < piece) {  // it may end before this piece does
      pieces += fmt::format("(?:{}|", once(what, {.least = left.least, .most = piece - 1}));
      behind += ")";
    }
    pieces += once(what, {.least = piece, .most = piece});
    left.least = std::max<std::int64_t>(left.least - piece, 0);
    if (left.most >= 0) left.most -= piece;
  }
  return pieces + once(what, left) + behind;
}

/// Reads an expression once, from left to right.
class Cutter {
 public:
  Cutter(std::string_view regex, std::int64_t piece) : regex_(regex), piece_(piece) {}

  /// Empty: it cannot be told where the parts of the expression end, or the automaton is too large.
  std::optional<std::string> run() {
    while (at_ < regex_.size())
      if (!part() || states_ > kMostStates) return std::nullopt;
    if (!groups_.empty()) return std::nullopt;
    return std::move(out_);
  }

 private:
  /// Of out_, up to its end.
  struct Part {
    std::size_t begin = 0;
    std::int64_t states_before = 0;
  };

  bool part() {
    switch (regex_[at_]) {
      case '\\':
        return atom(escape_bytes());
      case '[':
        return atom(class_bytes());
      case '(':
        groups_.push_back({.begin = out_.size(), .states_before = states_});
        return copy(1);
      case ')': {
        if (groups_.empty()) return false;
        const Part group = groups_.back();
        groups_.pop_back();
        copy(1);
        atom_ = group;
        return true;
      }
      case '{':
        return repetition();
      case '*':
      case '+':
      case '?':
      case '|':
      case '^':
      case '$':
        return copy(1);
      default:
        return atom(character_bytes());
    }
  }

  /// No part that can be repeated.
  bool copy(std::size_t bytes) {
    out_ += regex_.substr(at_, bytes);
    at_ += bytes;
    atom_ = std::nullopt;
    return true;
  }

  /// 0 bytes: it has no end, or none that is known.
  bool atom(std::size_t bytes) {
    if (bytes == 0 || at_ + bytes > regex_.size()) return false;
    const Part one{.begin = out_.size(), .states_before = states_++};
    copy(bytes);
    atom_ = one;
    return true;
  }

  bool repetition() {
    const auto bounds = bounds_here();
    if (!bounds || !atom_) return false;
    const std::string what = out_.substr(atom_->begin);
    const std::int64_t times = std::max<std::int64_t>({bounds->least, bounds->most, 1});
    const std::int64_t states = atom_->states_before + (states_ - atom_->states_before) * times;
    const bool cut = times > piece_ && states <= kMostStates && !what.starts_with("(?<");
    if (cut || times <= piece_) states_ = states;
    out_.resize(atom_->begin);
    out_ += cut ? in_pieces(what, *bounds, piece_) : once(what, *bounds);
    at_ += bounds->bytes;
    if (!cut) atom_ = std::nullopt;
    return true;
  }

  std::optional<Bounds> bounds_here() const {
    std::size_t end = at_ + 1;
    const auto number = [&]() -> std::optional<std::int64_t> {
      const std::size_t begin = end;
      std::int64_t value = 0;
      while (end < regex_.size() && std::isdigit(static_cast<unsigned char>(regex_[end])) != 0)
        value = value * 10 + (regex_[end++] - '0');
      const bool sane = end > begin && end - begin < 10;
      return sane ? std::optional(value) : std::nullopt;
    };
    const auto least = number();
    if (!least || end >= regex_.size()) return std::nullopt;
    Bounds bounds{.least = *least, .most = *least};
    if (regex_[end] == ',') {
      ++end;
      const bool endless = end < regex_.size() && regex_[end] == '}';
      const auto most = endless ? std::optional<std::int64_t>(-1) : number();
      if (!most) return std::nullopt;
      bounds.most = *most;
    }
    if (end >= regex_.size() || regex_[end] != '}') return std::nullopt;
    if (bounds.most >= 0 && bounds.most < bounds.least) return std::nullopt;
    ++end;
    if (end < regex_.size() && regex_[end] == '?') ++end;
    bounds.bytes = end - at_;
    return bounds;
  }

  std::size_t escape_bytes() const {
    if (at_ + 1 >= regex_.size()) return 0;
    const char kind = regex_[at_ + 1];
    const bool braced = at_ + 2 < regex_.size() && regex_[at_ + 2] == '{';
    if (braced && std::string_view("xupP").find(kind) != std::string_view::npos) {
      const std::size_t end = regex_.find('}', at_);
      return end == std::string_view::npos ? 0 : end + 1 - at_;
    }
    switch (kind) {
      case 'x':
        return 4;
      case 'u':
        return 6;
      case 'c':
      case 'p':
      case 'P':
        return 3;
      default:
        // Of other letters and digits some begin something longer.
        if (std::isalnum(static_cast<unsigned char>(kind)) != 0 &&
            std::string_view("dDwWsSbBnrtfv0").find(kind) == std::string_view::npos)
          return 0;
        return (static_cast<unsigned char>(kind) & 0x80U) != 0 ? 0 : 2;
    }
  }

  std::size_t class_bytes() const {
    std::size_t end = at_ + 1;
    if (end < regex_.size() && regex_[end] == '^') ++end;
    if (end < regex_.size() && regex_[end] == ']') return 0;  // dialects differ
    for (; end < regex_.size() && regex_[end] != ']'; ++end) {
      if (regex_[end] == '[') return 0;
      if (regex_[end] == '\\') ++end;
    }
    return end < regex_.size() ? end + 1 - at_ : 0;
  }

  /// Of a character in UTF-8.
  std::size_t character_bytes() const {
    std::size_t end = at_ + 1;
    while (end < regex_.size() && (static_cast<unsigned char>(regex_[end]) & 0xc0U) == 0x80U) ++end;
    return end - at_;
  }

  const std::string_view regex_;
  const std::int64_t piece_;
  std::size_t at_ = 0;
  std::string out_;
  std::int64_t states_ = 0;
  std::vector<Part> groups_;  // that are open
  std::optional<Part> atom_;  // what a repetition would repeat
};

}  // namespace

std::string with_short_repetitions(std::string_view regex, std::int64_t piece) {
  return Cutter(regex, piece).run().value_or(std::string(regex));
}

}  // namespace ferry
