// What published config classes mean by fields that config.json leaves out.
// tools/config_defaults.py writes the .cpp from transformers' classes.
#pragma once

#include <string_view>

namespace ferry {

/// A JSON object of fields; an empty one for a class that is not in the table.
std::string_view config_defaults(std::string_view model_type);

}  // namespace ferry
