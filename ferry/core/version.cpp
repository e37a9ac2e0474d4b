#include "ferry/version.h"

#define FERRY_TEXT_OF(number) #number
#define FERRY_TEXT(number) FERRY_TEXT_OF(number)

namespace ferry {

std::string_view version() {
  return FERRY_TEXT(FERRY_VERSION_MAJOR) "." FERRY_TEXT(FERRY_VERSION_MINOR) "." FERRY_TEXT(
      FERRY_VERSION_PATCH);
}

}  // namespace ferry
