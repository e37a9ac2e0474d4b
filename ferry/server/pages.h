// Pages that are built into the program.
#pragma once

#include <string_view>

namespace ferry {

/// Draws what /dashboard/state says.
std::string_view dashboard_html();

/// Talks to /v1/chat/completions.
std::string_view chat_html();

}  // namespace ferry
