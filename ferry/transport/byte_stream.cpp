#include "ferry/transport/byte_stream.h"

namespace ferry {

// Out of line: inlined into a fresh vector, GCC 12 takes the insertion for an overflow.
void ByteWriter::append(std::span<const std::byte> bytes) {
  bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
}

}  // namespace ferry
