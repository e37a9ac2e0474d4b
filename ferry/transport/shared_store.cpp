#include "ferry/transport/shared_store.h"

#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <new>

#include "ferry/core/error.h"
#include "ferry/core/wait.h"
#include "ferry/transport/store_values.h"

namespace ferry {

namespace {

/// Costs nothing until written. What a group says while it is made is some hundred bytes a rank.
constexpr std::size_t kBytes = std::size_t{64} << 20;
constexpr std::chrono::milliseconds kSleepSlice{20};

struct Entry {
  std::uint32_t key_bytes = 0;
  std::uint32_t value_bytes = 0;
  bool removed = false;
};

}  // namespace

/// Entries only ever come behind the others and count once `used` says so: that makes the memory
/// whole between any two instructions, and a key's last entry is its value.
struct SharedStore::Header {
  pthread_mutex_t lock;
  std::atomic<std::uint32_t> changes;
  std::atomic<std::int32_t> ended;  // rank + 1; 0: none
  std::atomic<std::size_t> used;
};

class SharedStore::Guard {
 public:
  explicit Guard(Header& header) : header_(header) {
    // Its last holder may have been killed; it left nothing half done that counts.
    if (pthread_mutex_lock(&header_.lock) == EOWNERDEAD) pthread_mutex_consistent(&header_.lock);
  }

  ~Guard() { pthread_mutex_unlock(&header_.lock); }

  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;

 private:
  Header& header_;
};

SharedStore::SharedStore() {
  void* p = mmap(
      nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED)
    fail<Error>("cannot map {} bytes for ranks to meet: {}", kBytes, std::strerror(errno));
  header_ = new (p) Header{};
  entries_ = static_cast<std::byte*>(p) + sizeof(Header);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&header_->lock, &attributes);
  pthread_mutexattr_destroy(&attributes);
}

SharedStore::~SharedStore() { munmap(header_, kBytes); }

void SharedStore::check_alive() const {
  const Rank ended = header_->ended.load() - 1;
  if (ended < 0) return;
  throw TransportError(TransportError::Kind::peer_died,
                       ended,
                       fmt::format("rank {} ended while the ranks were joining", ended));
}

void SharedStore::changed() {
  header_->changes.fetch_add(1);
  futex_wake_all(header_->changes, true);
}

void SharedStore::ended(Rank rank) {
  std::int32_t nobody = 0;
  header_->ended.compare_exchange_strong(nobody, rank + 1);
  changed();
}

std::optional<Store::Value> SharedStore::find(std::string_view key) const {
  std::optional<Value> found;
  const std::size_t used = header_->used.load();
  for (std::size_t at = 0; at < used;) {
    Entry entry;
    std::memcpy(&entry, entries_ + at, sizeof entry);
    const auto* name = reinterpret_cast<const char*>(entries_ + at + sizeof entry);
    const auto* value = reinterpret_cast<const std::byte*>(name + entry.key_bytes);
    if (std::string_view(name, entry.key_bytes) == key) {
      found.reset();
      if (!entry.removed) found.emplace(value, value + entry.value_bytes);
    }
    at += sizeof entry + entry.key_bytes + entry.value_bytes;
  }
  return found;
}

void SharedStore::append(std::string_view key, std::optional<std::span<const std::byte>> value) {
  const std::span<const std::byte> bytes = value.value_or(std::span<const std::byte>());
  const Entry entry{.key_bytes = static_cast<std::uint32_t>(key.size()),
                    .value_bytes = static_cast<std::uint32_t>(bytes.size()),
                    .removed = !value};
  const std::size_t at = header_->used.load();
  const std::size_t length = sizeof entry + key.size() + bytes.size();
  if (length > kBytes - sizeof(Header) - at)
    fail<Error>("ranks have said more than {} bytes while joining", kBytes);
  std::byte* to = entries_ + at;
  std::memcpy(to, &entry, sizeof entry);
  std::copy_n(reinterpret_cast<const std::byte*>(key.data()), key.size(), to + sizeof entry);
  std::copy(bytes.begin(), bytes.end(), to + sizeof entry + key.size());
  header_->used.store(at + length);
}

void SharedStore::set(const std::string& key, std::span<const std::byte> value) {
  check_alive();
  {
    const Guard guard(*header_);
    append(key, value);
  }
  changed();
}

std::optional<Store::Value> SharedStore::wait(const std::string& key, Deadline deadline) {
  for (;;) {
    const std::uint32_t seen = header_->changes.load();
    {
      const Guard guard(*header_);
      if (auto found = find(key)) return found;
    }
    check_alive();
    const Deadline now = std::chrono::steady_clock::now();
    if (now >= deadline) return std::nullopt;
    futex_wait(header_->changes,
               seen,
               std::min<std::chrono::nanoseconds>(kSleepSlice, deadline - now),
               true);
  }
}

std::int64_t SharedStore::add(const std::string& key, std::int64_t amount) {
  check_alive();
  std::int64_t sum = 0;
  {
    const Guard guard(*header_);
    Value value = find(key).value_or(Value());
    sum = add_to_value(key, value, amount);
    append(key, value);
  }
  changed();
  return sum;
}

void SharedStore::remove(const std::string& key) {
  const Guard guard(*header_);
  append(key, std::nullopt);
}

}  // namespace ferry
