#include "ferry/text/jinja/arithmetic.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace ferry {

namespace {

[[noreturn]] void do_not_fit(char op, const JinjaValue& left, const JinjaValue& right) {
  left.require_defined();
  right.require_defined();
  throw JinjaFailure(fmt::format("{} does not work on {} and {}",
                                 op == 'd'   ? "//"
                                 : op == 'p' ? "**"
                                             : std::string(1, op),
                                 left.type_name(),
                                 right.type_name()));
}

/// a ** b for b >= 0.
JinjaValue whole_power(std::int64_t a, std::int64_t b) {
  std::int64_t result = 1;
  // All greater powers of these three are their squares or cubes.
  if (a >= -1 && a <= 1 && b > 3) b = 2 + b % 2;
  for (std::int64_t i = 0; i < b; ++i) {
    if (__builtin_mul_overflow(result, a, &result)) {
      throw JinjaFailure("integers of 64 bits only: the result is greater");
    }
  }
  return JinjaValue(result);
}

JinjaValue real_power(double a, double b) {
  const double result = std::pow(a, b);
  if ((a == 0 && b < 0) || (std::isnan(result) && !std::isnan(a) && !std::isnan(b)) ||
      (std::isinf(result) && std::isfinite(a) && std::isfinite(b))) {
    throw JinjaFailure("**: the result is no number");
  }
  return JinjaValue(result);
}

JinjaValue whole_numbers(char op, std::int64_t a, std::int64_t b) {
  if (op == 'p') {
    return b >= 0 ? whole_power(a, b) : real_power(static_cast<double>(a), static_cast<double>(b));
  }
  std::int64_t result = 0;
  bool over = false;
  if (op == '+') {
    over = __builtin_add_overflow(a, b, &result);
  } else if (op == '-') {
    over = __builtin_sub_overflow(a, b, &result);
  } else if (op == '*') {
    over = __builtin_mul_overflow(a, b, &result);
  } else {
    if (b == 0) throw JinjaFailure("division by zero");
    if (op == '/') return JinjaValue(static_cast<double>(a) / static_cast<double>(b));
    over = a == std::numeric_limits<std::int64_t>::min() && b == -1;
    if (!over) {
      // Python rounds down, and the remainder has the divisor's sign.
      const std::int64_t rest = a % b;
      const bool adjust = rest != 0 && (rest < 0) != (b < 0);
      result = op == 'd' ? a / b - (adjust ? 1 : 0) : rest + (adjust ? b : 0);
    }
  }
  if (over) throw JinjaFailure("integers of 64 bits only: the result is greater");
  return JinjaValue(result);
}

JinjaValue real_numbers(char op, double a, double b) {
  if (op == '+') return JinjaValue(a + b);
  if (op == '-') return JinjaValue(a - b);
  if (op == '*') return JinjaValue(a * b);
  if (op == 'p') return real_power(a, b);
  if (b == 0) throw JinjaFailure("division by zero");
  if (op == '/') return JinjaValue(a / b);
  double rest = std::fmod(a, b);
  if (rest != 0 && (rest < 0) != (b < 0)) rest += b;
  return JinjaValue(op == '%' ? rest : std::floor((a - rest) / b + 0.5));
}

JinjaValue repeat(JinjaBudget& budget, const JinjaValue& value, std::int64_t times) {
  const auto n = static_cast<std::size_t>(std::max<std::int64_t>(0, times));
  if (const auto* text = value.text()) {
    if (!text->empty() && n > budget.max_text() / text->size()) {
      budget.spend_text(budget.max_text() + 1);  // throws
    }
    budget.spend_text(n * text->size());
    std::string out;
    for (std::size_t i = 0; i < n && !text->empty(); ++i) out += *text;
    return JinjaValue::text(std::move(out));
  }
  std::vector<JinjaValue> items;
  for (std::size_t i = 0; i < n && !value.list()->items.empty(); ++i) {
    budget.spend_items(value.list()->items.size());
    items.insert(items.end(), value.list()->items.begin(), value.list()->items.end());
  }
  return JinjaList::make(std::move(items), value.list()->kind);
}

JinjaValue add_sequences(JinjaBudget& budget, const JinjaValue& left, const JinjaValue& right) {
  if (left.text() != nullptr) {
    budget.spend_text(left.text()->size() + right.text()->size());
    return JinjaValue::text(*left.text() + *right.text());
  }
  const auto& more = right.list()->items;
  budget.spend_items(left.list()->items.size() + more.size());
  std::vector<JinjaValue> items = left.list()->items;
  items.insert(items.end(), more.begin(), more.end());
  return JinjaList::make(std::move(items), left.list()->kind);
}

bool is_sequence(const JinjaValue& value) {
  return value.text() != nullptr ||
         (value.list() != nullptr && value.list()->kind != JinjaList::Kind::stream);
}

/// The places that begin:end:step names in a sequence of `size`, by Python's rules.
std::vector<std::size_t> slice_places(std::size_t size,
                                      const JinjaValue& begin,
                                      const JinjaValue& end,
                                      const JinjaValue& step) {
  const auto count = static_cast<std::int64_t>(size);
  const std::int64_t by = step.is_none() ? 1 : as_integer(step, "slice step");
  if (by == 0) throw JinjaFailure("a slice has a step of 0");
  const std::int64_t lowest = by > 0 ? 0 : -1;
  const std::int64_t highest = by > 0 ? count : count - 1;
  const auto bound = [&](const JinjaValue& value, std::int64_t fallback) {
    if (value.is_none()) return fallback;
    std::int64_t at = as_integer(value, "slice");
    if (at < 0) at = at < -count ? lowest : at + count;
    return std::clamp(at, lowest, highest);
  };
  const std::int64_t from = bound(begin, by > 0 ? lowest : highest);
  const std::int64_t to = bound(end, by > 0 ? highest : lowest);
  std::vector<std::size_t> places;
  if (by > 0) {
    for (std::int64_t at = from; at < to;) {
      places.push_back(static_cast<std::size_t>(at));
      if (by >= to - at) break;
      at += by;
    }
  } else {
    for (std::int64_t at = from; at > to;) {
      places.push_back(static_cast<std::size_t>(at));
      if (by <= to - at) break;
      at += by;
    }
  }
  return places;
}

}  // namespace

JinjaValue jinja_arithmetic(JinjaBudget& budget,
                            char op,
                            const JinjaValue& left,
                            const JinjaValue& right) {
  if (left.is_number() && right.is_number()) {
    return left.real() == nullptr && right.real() == nullptr
               ? whole_numbers(op, as_integer(left, ""), as_integer(right, ""))
               : real_numbers(op, as_double(left), as_double(right));
  }
  if (op == '+' && is_sequence(left) && left.type_name() == right.type_name()) {
    return add_sequences(budget, left, right);
  }
  if (op == '*') {
    const bool swapped = right.real() == nullptr && left.is_number();
    const JinjaValue& sequence = swapped ? right : left;
    const JinjaValue& times = swapped ? left : right;
    if (is_sequence(sequence) && times.is_number() && times.real() == nullptr) {
      return repeat(budget, sequence, as_integer(times, ""));
    }
  }
  if (op == '%' && left.text() != nullptr) {
    throw JinjaFailure("formatting with % is not supported");
  }
  do_not_fit(op, left, right);
}

JinjaValue jinja_minus(const JinjaValue& value) {
  if (const auto* real = value.real()) return JinjaValue(-*real);
  return whole_numbers('-', 0, as_integer(value, "-"));
}

JinjaValue jinja_slice(JinjaBudget& budget,
                       const JinjaValue& value,
                       const JinjaValue& begin,
                       const JinjaValue& end,
                       const JinjaValue& step) {
  value.require_defined();
  if (!is_sequence(value)) {
    throw JinjaFailure(fmt::format("a {} cannot be sliced", value.type_name()));
  }
  if (const auto* text = value.text()) {
    budget.spend_text(text->size());
    const std::vector<std::size_t> starts = character_starts(*text);
    std::string out;
    for (const std::size_t at : slice_places(starts.size() - 1, begin, end, step)) {
      out += text->substr(starts[at], starts[at + 1] - starts[at]);
    }
    return JinjaValue::text(std::move(out));
  }
  const auto& items = value.list()->items;
  budget.spend_items(items.size());
  std::vector<JinjaValue> out;
  for (const std::size_t at : slice_places(items.size(), begin, end, step)) {
    out.push_back(items[at]);
  }
  return JinjaList::make(std::move(out), value.list()->kind);
}

}  // namespace ferry
