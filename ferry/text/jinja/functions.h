// Functions that templates find by name, and the objects that have an identity. For the evaluator
// only.
#pragma once

#include <ctime>
#include <deque>
#include <map>
#include <optional>
#include <string>

#include "ferry/text/jinja/ast.h"
#include "ferry/text/jinja/builtins.h"

namespace ferry {

struct JinjaNamespace : JinjaObject {
  std::string_view type_name() const override { return "namespace"; }

  JinjaValue attribute(const std::string& name) const override;

  std::map<std::string, JinjaValue> attributes;
};

/// Borrows the macro from the parsed template.
struct JinjaMacroObject : JinjaObject {
  explicit JinjaMacroObject(const JinjaMacro& m) : macro(m) {}

  std::string_view type_name() const override { return "macro"; }

  JinjaValue attribute(const std::string& name) const override;

  const JinjaMacro& macro;
};

/// `loop` inside of a for block.
struct JinjaLoop : JinjaObject {
  JinjaLoop(JinjaBudget& b, JinjaValue::List i) : budget(b), items(std::move(i)) {}

  std::string_view type_name() const override { return "loop"; }

  JinjaValue attribute(const std::string& name) const override;

  /// cycle() and changed().
  JinjaValue call(const std::string& name, JinjaArgs& args);

  JinjaBudget& budget;
  JinjaValue::List items;
  std::size_t index = 0;
  std::optional<JinjaValue> last_changed;
};

class JinjaFunctions {
 public:
  JinjaFunctions(JinjaBudget& budget, std::optional<std::time_t> now)
      : budget_(budget), now_(now) {}

  /// REQUIRES: is_jinja_function(name).
  JinjaValue call(const std::string& name, JinjaArgs& args);

 private:
  JinjaValue range(JinjaArgs& args);
  JinjaValue make_namespace(JinjaArgs& args);
  JinjaValue make_dict(JinjaArgs& args);
  JinjaValue strftime_now(JinjaArgs& args) const;
  [[noreturn]] void raise(JinjaArgs& args);

  JinjaBudget& budget_;
  std::optional<std::time_t> now_;
  std::deque<JinjaNamespace> namespaces_;
};

}  // namespace ferry
