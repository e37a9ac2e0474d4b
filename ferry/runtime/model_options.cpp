#include "ferry/runtime/model_options.h"

#include "ferry/core/error.h"

namespace ferry {

ChooseBy parse_choose_by(std::string_view name, std::string_view option) {
  for (const ChooseBy by : {ChooseBy::counted, ChooseBy::measured})
    if (name == choose_by_name(by)) return by;
  fail<ConfigError>("unknown {} '{}'; known: counted, measured", option, name);
}

bool parse_load(std::string_view name, std::string_view option) {
  if (name != "read" && name != "mapped")
    fail<ConfigError>("{} {}: no such way; known: read, mapped", option, name);
  return name == "mapped";
}

std::string_view choose_by_name(ChooseBy by) {
  return by == ChooseBy::counted ? "counted" : "measured";
}

}  // namespace ferry
