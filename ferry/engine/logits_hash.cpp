#include "ferry/engine/logits_hash.h"

#include <openssl/evp.h>

#include <bit>

#include "ferry/core/error.h"

namespace ferry {

static_assert(std::endian::native == std::endian::little, "rows are hashed as they lie in memory");

namespace {

void evp_check(int status, const char* call) {
  if (status != 1) fail<Error>("{} failed; libcrypto has no SHA-256?", call);
}

}  // namespace

void LogitsHash::Free::operator()(evp_md_ctx_st* context) const noexcept {
  EVP_MD_CTX_free(context);
}

LogitsHash::LogitsHash() : context_(EVP_MD_CTX_new()) {
  evp_check(context_ != nullptr, "EVP_MD_CTX_new");
  evp_check(EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr), "EVP_DigestInit_ex");
}

void LogitsHash::add(std::span<const float> row) {
  evp_check(EVP_DigestUpdate(context_.get(), row.data(), row.size_bytes()), "EVP_DigestUpdate");
}

Sha256 LogitsHash::finish() {
  Sha256 hash;
  evp_check(
      EVP_DigestFinal_ex(context_.get(), reinterpret_cast<unsigned char*>(hash.data()), nullptr),
      "EVP_DigestFinal_ex");
  return hash;
}

std::string to_hex(const Sha256& hash) {
  std::string digits;
  for (const std::byte b : hash) digits += fmt::format("{:02x}", std::to_integer<unsigned>(b));
  return digits;
}

}  // namespace ferry
