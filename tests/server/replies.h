// What handlers reply, waited for as the server does it.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "ferry/server/http_server.h"

namespace ferry::test {

/// The pieces of a reply in turn. Fails where none comes for a minute.
class Pieces {
 public:
  explicit Pieces(HttpReply reply) : reply_(std::move(reply)) {
    if (reply_.listen) reply_.listen([more = more_] { more->release(); });
  }

  /// None: the end.
  std::optional<std::string> next() {
    for (;;) {
      std::optional<std::string> piece = reply_.next();
      if (!piece || !piece->empty()) return piece;
      if (!more_->try_acquire_for(std::chrono::minutes(1)))
        throw std::runtime_error("nothing more comes");
    }
  }

 private:
  HttpReply reply_;
  // Shared with the listener, which others may call a last time behind our end.
  std::shared_ptr<std::counting_semaphore<>> more_ = std::make_shared<std::counting_semaphore<>>(0);
};

/// All of them; fails where they do not end.
inline std::vector<std::string> pieces_of(HttpReply reply) {
  std::vector<std::string> pieces;
  Pieces in(std::move(reply));
  while (std::optional<std::string> piece = in.next()) {
    pieces.push_back(std::move(*piece));
    if (pieces.size() > 1000) throw std::runtime_error("the stream does not end");
  }
  return pieces;
}

/// The body.
inline std::string text_of(HttpReply reply) {
  std::string text = std::move(reply.body);
  if (!reply.next) return text;
  for (const std::string& piece : pieces_of(std::move(reply))) text += piece;
  return text;
}

}  // namespace ferry::test
