#include "ferry/transport/proof.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>

namespace ferry {

namespace {

constexpr std::size_t kProofBytes = 32;

Bytes proof_of(const std::string& secret,
               std::span<const std::byte> greeting,
               std::span<const std::byte> message) {
  const Bytes covered = ByteWriter().blob(greeting).blob(message).bytes();
  Bytes proof(kProofBytes);
  unsigned int length = kProofBytes;
  HMAC(EVP_sha256(),
       secret.data(),
       static_cast<int>(secret.size()),
       reinterpret_cast<const unsigned char*>(covered.data()),
       covered.size(),
       reinterpret_cast<unsigned char*>(proof.data()),
       &length);
  return proof;
}

}  // namespace

void say(const UniqueFd& socket,
         const std::string& secret,
         std::span<const std::byte> session,
         std::span<const std::byte> words,
         Deadline deadline) {
  // The greeting has no length in front: it is the first thing on a fresh connection.
  Bytes greeting(Doorman::kGreetingBytes);
  receive_exactly(socket, greeting, deadline);
  greeting.insert(greeting.end(), session.begin(), session.end());
  send_message(
      socket, ByteWriter().blob(proof_of(secret, greeting, words)).blob(words).bytes(), deadline);
}

/// What a guest said, if it proves that it knows the secret.
std::optional<Bytes> believed(const Doorman::Guest& guest,
                              const std::string& secret,
                              std::span<const std::byte> session) {
  ByteReader reader(guest.message);
  const auto proof = reader.blob();
  const auto words = reader.blob();
  Bytes greeting = guest.greeting;
  greeting.insert(greeting.end(), session.begin(), session.end());
  const Bytes expected = proof_of(secret, greeting, words);
  if (proof.size() != kProofBytes || CRYPTO_memcmp(proof.data(), expected.data(), kProofBytes) != 0)
    return std::nullopt;
  return Bytes(words.begin(), words.end());
}

}  // namespace ferry
