// The serving side of a TcpStore, and what travels between the two. All numbers are little-endian;
// a message stands behind its length (u32).
//
//   server -> caller    32 random bytes
//   caller -> server    proof, greeting     as everywhere (proof.h)
//   server -> caller    answer              done, or why it is turned away
//   then, one at a time: request, answer
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "ferry/store.h"
#include "ferry/transport/byte_stream.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

/// What a caller says first.
Bytes store_greeting();

struct StoreRequest {
  enum class Kind : std::uint8_t { set, wait, add, remove };

  Kind kind = Kind::set;
  std::string key;
  std::int64_t number = 0;  ///< add: the amount; wait: milliseconds at most
  Bytes value = {};         ///< set

  Bytes bytes() const {
    return ByteWriter().number(kind).text(key).number(number).blob(value).bytes();
  }

  static StoreRequest read(std::span<const std::byte> bytes);
};

struct StoreAnswer {
  enum class Kind : std::uint8_t { done, value, nothing, refused };

  Kind kind = Kind::done;
  std::int64_t number = 0;  ///< the sum of an add
  Bytes value = {};         ///< of a key; refused: why, as text

  std::string text() const { return {reinterpret_cast<const char*>(value.data()), value.size()}; }

  Bytes bytes() const { return ByteWriter().number(kind).number(number).blob(value).bytes(); }

  static StoreAnswer read(std::span<const std::byte> bytes);
};

/// Serves from a thread of its own until it is destroyed.
class StoreServer {
 public:
  /// Throws Error where there is no thread to be had.
  StoreServer(UniqueFd listener, std::string secret);
  ~StoreServer();
  StoreServer(const StoreServer&) = delete;
  StoreServer& operator=(const StoreServer&) = delete;

 private:
  class Loop;
  std::unique_ptr<Loop> loop_;
};

}  // namespace ferry
