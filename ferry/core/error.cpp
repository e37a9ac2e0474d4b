#include "ferry/core/error.h"

#include <string_view>

namespace ferry {

void broken_contract(const char* condition,
                     const std::string& message,
                     const char* file,
                     int line) {
  std::string_view place = file;
  if (const auto room = place.rfind("ferry/"); room != std::string_view::npos)
    place.remove_prefix(room);
  throw BrokenContract(fmt::format("{} [{} at {}:{}]", message, condition, place, line));
}

}  // namespace ferry
