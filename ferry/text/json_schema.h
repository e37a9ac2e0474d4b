// What of JSON Schema can be promised: a schema that asks for more is refused by name, since a
// grammar would pass over it in silence.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace ferry {

/// The schema as the grammar's compiler reads it: where an object names no properties and an array
/// no items, they may have any. Throws ConfigError that names the keyword and where it stands.
std::string supported_schema(std::string_view schema);

/// The same for all schemas of a structural tag.
std::string supported_tag(std::string_view tag);

}  // namespace ferry
