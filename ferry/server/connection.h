// A client's connection as bytes that come and go, plain or through TLS. Nothing here waits: what
// is asked for is told later, to the one who uses the connection.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace ferry {

/// What happens to a connection; one call at a time, on any of the listener's threads.
class ConnectionUser {
 public:
  virtual ~ConnectionUser() = default;

  /// It can be read and written.
  virtual void on_open() = 0;
  /// What a read() has brought; valid during the call.
  virtual void on_bytes(std::string_view bytes) = 0;
  /// The client sends no more, maybe since it has gone.
  virtual void on_no_more() = 0;
  /// All of a write() has left.
  virtual void on_written() = 0;
  /// It cannot be used any more.
  virtual void on_broken() = 0;
  virtual void on_deadline() = 0;
};

/// Called by its user inside the calls that it gets, but post(), which any thread may call.
class Connection {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr Clock::time_point kNever = Clock::time_point::max();

  virtual ~Connection() = default;

  /// To be called first. The user is owned until close().
  virtual void open(std::shared_ptr<ConnectionUser> user) = 0;

  /// One at a time. Ends in on_bytes(), on_no_more() or on_broken().
  virtual void read() = 0;

  /// One at a time. Ends in on_written() or on_broken(); the bytes are borrowed until then.
  virtual void write(std::string_view bytes) = 0;

  /// When on_deadline() is to be called, instead of what was said before.
  virtual void set_deadline(Clock::time_point when) = 0;

  /// The client hears that there is no more, and may still send.
  virtual void finish_sending() = 0;

  /// The user hears nothing any more.
  virtual void close() = 0;

  /// Calls `task` as it calls its user, but never before post() has returned.
  virtual void post(std::function<void()> task) = 0;

  /// Address of the client.
  virtual const std::string& peer() const = 0;
};

}  // namespace ferry
