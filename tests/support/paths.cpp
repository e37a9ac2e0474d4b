#include "support/paths.h"

namespace ferry::test {

std::filesystem::path source_dir() { return FERRY_SOURCE_DIR; }

}  // namespace ferry::test
