#include "ferry/core/error.h"

#include <string_view>

namespace ferry {

void broken_contract(const char* condition,
                     const std::string& message,
                     const std::source_location& where) {
  std::string_view file = where.file_name();
  if (const auto room = file.rfind("ferry/"); room != std::string_view::npos)
    file.remove_prefix(room);
  throw BrokenContract(fmt::format("{} [{} at {}:{}]", message, condition, file, where.line()));
}

}  // namespace ferry
