// Where ranks meet before they can reach each other: keys (texts) with values (bytes) that all of
// them see. It carries a few small messages while a group is made, and nothing afterwards.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ferry/export.h"
#include "ferry/transport.h"

namespace ferry {

/// The interface that join() needs; torch's stores, gloo's IStore and PMIx can stand behind it.
/// Threads: any, at the same time. Errors: TransportError where the store cannot be reached.
class FERRY_API Store {
 public:
  using Value = std::vector<std::byte>;

  virtual ~Store() = default;

  /// Writes a key, over an older value where there is one.
  virtual void set(const std::string& key, std::span<const std::byte> value) = 0;

  /// The value of a key, as soon as somebody has set it; nothing when the deadline is over first. A
  /// deadline in the past makes this a look.
  virtual std::optional<Value> wait(const std::string& key, Deadline deadline) = 0;

  /// Adds to a number that starts at 0 and returns the sum, in one step for all callers. The key's
  /// value is the number as decimal text. Only Membership::announce() needs it.
  virtual std::int64_t add(const std::string& key, std::int64_t amount) = 0;

  /// Forgets a key; nothing happens where there is none. A store that cannot forget may do nothing:
  /// then every join() over it needs a group or epoch of its own.
  virtual void remove(const std::string& key) = 0;

  std::optional<Value> get(const std::string& key) { return wait(key, Deadline::min()); }

  void set_text(const std::string& key, std::string_view text) {
    set(key, std::as_bytes(std::span(text.data(), text.size())));
  }
};

/// Keys of another store behind a prefix, so that several groups share one. Borrows it.
class FERRY_API PrefixStore final : public Store {
 public:
  PrefixStore(Store& store, std::string prefix) : store_(store), prefix_(std::move(prefix)) {}

  void set(const std::string& key, std::span<const std::byte> value) override {
    store_.set(prefix_ + key, value);
  }

  std::optional<Value> wait(const std::string& key, Deadline deadline) override {
    return store_.wait(prefix_ + key, deadline);
  }

  std::int64_t add(const std::string& key, std::int64_t amount) override {
    return store_.add(prefix_ + key, amount);
  }

  void remove(const std::string& key) override { store_.remove(prefix_ + key); }

 private:
  Store& store_;
  const std::string prefix_;
};

/// A store that the caller brings. The functions are called from the threads that call join().
struct StoreCallbacks {
  std::function<void(const std::string&, std::span<const std::byte>)> set;
  std::function<std::optional<Store::Value>(const std::string&, Deadline)> wait;
  std::function<std::int64_t(const std::string&, std::int64_t)> add = {};  ///< may be missing
  std::function<void(const std::string&)> remove = {};                     ///< may be missing
};

class FERRY_API CallbackStore final : public Store {
 public:
  /// Throws ConfigError where `set` or `wait` is missing.
  explicit CallbackStore(StoreCallbacks callbacks);

  void set(const std::string& key, std::span<const std::byte> value) override;
  std::optional<Value> wait(const std::string& key, Deadline deadline) override;
  /// Throws ConfigError where the caller's store has no such thing.
  std::int64_t add(const std::string& key, std::int64_t amount) override;
  void remove(const std::string& key) override;

 private:
  const StoreCallbacks callbacks_;
};

/// A store for the threads of one process.
class FERRY_API LocalStore final : public Store {
 public:
  LocalStore();
  ~LocalStore() override;

  void set(const std::string& key, std::span<const std::byte> value) override;
  std::optional<Value> wait(const std::string& key, Deadline deadline) override;
  std::int64_t add(const std::string& key, std::int64_t amount) override;
  void remove(const std::string& key) override;

  /// From now on every call throws TransportError{aborted, about} with this reason; who waits is
  /// woken.
  void close(Rank about, std::string_view reason);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace ferry
