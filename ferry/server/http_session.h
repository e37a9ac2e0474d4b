// One client's connection from its first request to its last: requests come in one after the other,
// and each is answered before the next is looked at.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "ferry/server/connection.h"
#include "ferry/server/http_routes.h"
#include "ferry/server/workers.h"

namespace ferry {

class HttpSession;

/// What all sessions of a server share.
struct HttpService {
  const HttpOptions& options;
  HttpRoutes routes;
  Workers workers;
  std::function<void(const std::shared_ptr<HttpSession>&)> ended = {};
  std::atomic<bool> stopping{false};
  std::atomic<int> busy{0};
  std::atomic<std::size_t> arriving_bytes{0};
};

/// Threads: what its connection calls it on; stop() on any. Lives until it says that it has ended.
class HttpSession final : public ConnectionUser, public std::enable_shared_from_this<HttpSession> {
 public:
  /// `refused`: there are too many, which is all that is said.
  HttpSession(std::shared_ptr<Connection> connection, HttpService& service, bool refused)
      : connection_(std::move(connection)), service_(service), refused_(refused) {}

  void start();

  /// Breaks off what is under way.
  void stop();

  bool refused() const { return refused_; }

  void on_open() override;
  void on_bytes(std::string_view bytes) override;
  void on_no_more() override;
  void on_broken() override;
  void on_written() override;
  void on_deadline() override;

 private:
  using Clock = Connection::Clock;

  enum class State : std::uint8_t {
    reading,   // a request, or nothing yet
    handling,  // a worker is at it
    replying,  // pieces come, or are written
    leaving,   // all is said; the client may still be sending
    over
  };

  void read_on();
  void advance();
  void begin_request();
  void take_head();
  void handle();
  void reply(HttpReply reply);
  void begin_stream();
  void pump();
  void pump_whole();
  void answer(HttpAnswer answer);
  HttpFields common_fields();
  void send(std::string bytes);
  void write_slice();
  void finish_request();
  void leave();
  void log(int status);
  void end();
  void count_arriving(std::size_t bytes);

  const HttpHead& head() const;

  const std::shared_ptr<Connection> connection_;
  HttpService& service_;
  const bool refused_;
  State state_ = State::reading;
  bool reading_ = false;  // a read() is under way
  bool no_more_ = false;  // the client has ended its half
  bool closes_ = false;   // behind this answer
  std::string input_;     // that has come and is not looked at

  std::unique_ptr<RequestParser> parser_;  // of the request that has begun
  std::size_t received_ = 0;               // of it
  Clock::time_point began_;
  HttpReply reply_;       // with pieces that come
  bool chunked_ = false;  // as they leave
  int status_ = 0;        // that has been answered; 0: none yet

  std::string sending_, queued_;
  std::size_t sent_ = 0;  // of sending_
  bool writing_ = false;
};

}  // namespace ferry
