// SHA-256 over the logits that chose a request's tokens, so that two runs can be compared to the
// last bit.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "ferry/engine/step_record.h"

struct evp_md_ctx_st;  // OpenSSL's

namespace ferry {

/// Running hash of f32 rows in order, little endian.
class LogitsHash {
 public:
  LogitsHash();

  void add(std::span<const float> row);
  /// Ends the hash; nothing may be added afterwards.
  Sha256 finish();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const noexcept;
  };

  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

/// In lower-case hexadecimal digits.
std::string to_hex(const Sha256& hash);

}  // namespace ferry
