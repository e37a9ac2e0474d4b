// How much work one rendering of a chat template may do.
#pragma once

#include <cstddef>
#include <stdexcept>

namespace ferry {

/// Something went wrong while a template ran. The evaluator adds file and line and throws
/// ConfigError.
class JinjaFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What one rendering may still use up. Every spend() throws JinjaFailure when it is over.
class JinjaBudget {
 public:
  JinjaBudget(std::size_t steps, std::size_t max_text) : steps_(steps), max_text_(max_text) {}

  /// A step is an expression, or an item that is looked at.
  void spend(std::size_t steps = 1);

  /// Before a text of this size is made or searched.
  void spend_text(std::size_t bytes);

  /// Before a list of this size is made.
  void spend_items(std::size_t items);

  std::size_t max_text() const { return max_text_; }

 private:
  std::size_t steps_, max_text_;
};

}  // namespace ferry
