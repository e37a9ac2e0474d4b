// A store in memory that forked processes inherit: how ranks meet that run_ranks() starts. Whoever
// is killed at any moment leaves it whole.
#pragma once

#include <string_view>

#include "ferry/store.h"

namespace ferry {

class SharedStore final : public Store {
 public:
  /// Made by the launcher, before it forks. Throws Error where there is no memory.
  SharedStore();
  ~SharedStore() override;
  SharedStore(const SharedStore&) = delete;
  SharedStore& operator=(const SharedStore&) = delete;

  void set(const std::string& key, std::span<const std::byte> value) override;
  std::optional<Value> wait(const std::string& key, Deadline deadline) override;
  std::int64_t add(const std::string& key, std::int64_t amount) override;
  void remove(const std::string& key) override;

  /// A rank has ended. Whoever still waits here gets TransportError{peer_died, rank}.
  void ended(Rank rank);

 private:
  struct Header;
  class Guard;

  std::optional<Value> find(std::string_view key) const;
  void append(std::string_view key, std::optional<std::span<const std::byte>> value);
  void check_alive() const;
  void changed();

  Header* header_ = nullptr;
  std::byte* entries_ = nullptr;
};

}  // namespace ferry
