#include "ferry/store.h"

#include <condition_variable>
#include <map>
#include <mutex>
#include <utility>

#include "ferry/core/error.h"
#include "ferry/transport/store_values.h"

namespace ferry {

CallbackStore::CallbackStore(StoreCallbacks callbacks) : callbacks_(std::move(callbacks)) {
  if (!callbacks_.set || !callbacks_.wait)
    fail<ConfigError>("a store of the caller needs at least the functions set and wait");
}

void CallbackStore::set(const std::string& key, std::span<const std::byte> value) {
  callbacks_.set(key, value);
}

std::optional<Store::Value> CallbackStore::wait(const std::string& key, Deadline deadline) {
  return callbacks_.wait(key, deadline);
}

std::int64_t CallbackStore::add(const std::string& key, std::int64_t amount) {
  if (!callbacks_.add) fail<ConfigError>("the caller's store cannot add, which {} needs", key);
  return callbacks_.add(key, amount);
}

void CallbackStore::remove(const std::string& key) {
  if (callbacks_.remove) callbacks_.remove(key);
}

// --- LocalStore ----------------------------------------------------------------------------------

struct LocalStore::State {
  std::mutex lock;
  std::condition_variable changed;
  std::map<std::string, Value, std::less<>> values;
  std::optional<std::string> closed;
  Rank about = -1;

  void check_open() const {
    if (closed) throw TransportError(TransportError::Kind::aborted, about, *closed);
  }
};

LocalStore::LocalStore() : state_(std::make_unique<State>()) {}

LocalStore::~LocalStore() = default;

void LocalStore::set(const std::string& key, std::span<const std::byte> value) {
  {
    const std::lock_guard guard(state_->lock);
    state_->check_open();
    state_->values.insert_or_assign(key, Value(value.begin(), value.end()));
  }
  state_->changed.notify_all();
}

std::optional<Store::Value> LocalStore::wait(const std::string& key, Deadline deadline) {
  std::unique_lock lock(state_->lock);
  for (;;) {
    state_->check_open();
    if (const auto found = state_->values.find(key); found != state_->values.end())
      return found->second;
    if (std::chrono::steady_clock::now() >= deadline) return std::nullopt;
    if (deadline == kNoDeadline) {
      state_->changed.wait(lock);
    } else {
      state_->changed.wait_until(lock, deadline);
    }
  }
}

std::int64_t LocalStore::add(const std::string& key, std::int64_t amount) {
  std::int64_t sum = 0;
  {
    const std::lock_guard guard(state_->lock);
    state_->check_open();
    sum = add_to_value(key, state_->values[key], amount);
  }
  state_->changed.notify_all();
  return sum;
}

void LocalStore::remove(const std::string& key) {
  const std::lock_guard guard(state_->lock);
  state_->check_open();
  state_->values.erase(key);
}

void LocalStore::close(Rank about, std::string_view reason) {
  {
    const std::lock_guard guard(state_->lock);
    if (state_->closed) return;
    state_->closed = reason;
    state_->about = about;
  }
  state_->changed.notify_all();
}

// --- Numbers -------------------------------------------------------------------------------------

std::int64_t add_to_value(const std::string& key, Store::Value& value, std::int64_t amount) {
  const std::string text = text_of(value);
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (!text.empty() && (error != std::errc() || end != text.data() + text.size()))
    fail<Error>("store: key {} holds {} bytes that are no number", key, text.size());
  if (__builtin_add_overflow(number, amount, &number))
    fail<Error>("store: key {} would leave the range of 64-bit numbers", key);
  const std::string sum = std::to_string(number);
  const auto bytes = std::as_bytes(std::span(sum.data(), sum.size()));
  value.assign(bytes.begin(), bytes.end());
  return number;
}

}  // namespace ferry
