// Between the threads of callers and the engine's loop: who asked for which request, and what has
// come for them.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "ferry/engine/engine.h"
#include "ferry/refused.h"

namespace ferry {

class EngineFront;

struct EndedRequest {
  enum class Ending : std::uint8_t { stop, length, cancelled };

  Ending ending = Ending::stop;
  double seconds = 0;  ///< since it came
  std::size_t prompt_tokens = 0;
  int tokens = 0;  ///< that its client has
};

/// The requests of one call, and their tokens as they come. Those that are not done when it is
/// destroyed are cancelled. Threads: one at a time. Must not outlive the front.
class Call {
 public:
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  struct Arrival {
    std::size_t index = 0;  ///< of the request in this call
    TokenEvent event;
  };

  /// The tokens of all requests that have come since, in order; waits until there are any. Empty:
  /// nothing came in time. Throws Refused (ended) when
  /// the engine has ended and all that came is taken.
  std::vector<Arrival> take(std::chrono::milliseconds timeout);

  /// From now on `wake` is called when take() has something again, once until it is taken; at once
  /// where it has. On any thread, under locks of the front: it only leaves a note for somebody.
  void listen(std::function<void()> wake);

  /// Nobody waits for this one any more.
  void cancel(std::size_t index);

  /// Its reader has all of this one: how it ended, with how many tokens. Where the engine does not
  /// know yet (a stop string came), it ends there too.
  void end(std::size_t index, EndedRequest::Ending ending, int tokens);

  std::chrono::duration<double> age() const { return Clock::now() - began_; }

 private:
  friend class EngineFront;
  using Clock = std::chrono::steady_clock;

  struct Asked {
    std::uint64_t id = 0;
    std::size_t prompt_tokens = 0;
    bool done = false;             ///< the engine is not at it any more
    bool told = false;             ///< the listener knows how it ended
    Clock::time_point last_token;  // of the start, before the first
    int tokens = 0;
  };

  /// Of this call alone, so that a client's thread that wakes holds up no other client and not the
  /// engine. Locked behind the front's mutex, never before it.
  struct Mailbox {
    std::mutex mutex;  // guards what follows
    std::condition_variable changed;
    std::function<void()> wake;
    std::vector<Arrival> arrivals;
    std::optional<std::string> failure;
  };

  explicit Call(EngineFront& front) : front_(front) {}

  EngineFront& front_;
  Clock::time_point began_ = Clock::now();
  std::vector<Asked> asked_;  // guarded by front_'s mutex
  // Also owned by the engine's loop while it delivers: the call may end before it is woken.
  std::shared_ptr<Mailbox> mail_ = std::make_shared<Mailbox>();
};

/// Hears how requests fare. Called from any thread, under the front's lock: to count, not to work.
class RequestListener {
 public:
  virtual ~RequestListener() = default;

  virtual void prompt_tokens(std::size_t tokens) = 0;
  /// Known with its first token: how many seconds the request had waited before it ran.
  virtual void queued(double seconds) = 0;
  /// `since`: seconds since the request came, or since its last token.
  virtual void token(bool first, double since) = 0;
  virtual void ended(const EndedRequest& request) = 0;
  virtual void refused() = 0;
};

/// Threads: any, but on_token(), fail() and detach(), which are the engine loop's.
class EngineFront {
 public:
  /// Both borrowed; `listener` may be null.
  EngineFront(Engine& engine, RequestListener* listener);

  /// Throws ConfigError for a request that cannot be, Refused when too many are there already, when
  /// it takes no more or when the engine has ended. All of them start or none.
  std::unique_ptr<Call> start(std::vector<Request> requests);

  /// Runs `task` on the engine's loop between two steps and waits for it. Throws Refused when that
  /// takes too long, or when the engine has ended.
  void between_steps(std::function<void(Engine&)> task);

  void on_token(const TokenEvent& event);
  /// Every call, and every later one, ends with this message.
  void fail(const std::string& message);

  /// Takes no further calls.
  void refuse_new();
  /// Cancels what still runs and ends its calls with an error.
  void end_all(const std::string& message);
  /// The same, and the engine's run() returns.
  void stop(const std::string& message);
  /// The engine is about to go: as fail(), and it is not touched any more. Calls may outlive it.
  void detach(const std::string& message);

  struct LiveRequest {
    std::uint64_t id = 0;
    std::size_t prompt_tokens = 0;
    int tokens = 0;  ///< that have come
    double seconds = 0;
  };

  /// Requests that somebody waits for, oldest first.
  std::vector<LiveRequest> live() const;

  /// Throws Refused when no call would be taken.
  void check_open() const;

 private:
  friend class Call;

  struct Place {
    Call* call = nullptr;
    std::size_t index = 0;
  };

  void check_open_locked() const;
  void check_lives_locked() const;
  void fail_locked(const std::string& message);
  void end_all_locked(const std::string& message);
  void end(Call& call, std::size_t index, EndedRequest::Ending ending, int tokens);

  RequestListener* listener_;
  std::shared_mutex leaving_;  // shared by those who use the engine outside mutex_
  mutable std::mutex mutex_;   // guards what follows, and the calls
  Engine* engine_;             // null once it is gone
  std::unordered_map<std::uint64_t, Place> places_;
  bool refusing_ = false;
  std::optional<std::string> failure_;
};

}  // namespace ferry
