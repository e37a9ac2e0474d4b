#include "ferry/server/response_store.h"

#include <utility>

#include "ferry/core/error.h"

namespace ferry {

void ResponseStore::put(const std::string& id, StoredResponse response) {
  const std::lock_guard lock(mutex_);
  FERRY_CHECK(!places_.contains(id), "a response {} is stored already", id);
  bytes_ += response.bytes();
  used_.push_back(id);
  places_.emplace(id,
                  Place{.response = std::make_shared<const StoredResponse>(std::move(response)),
                        .used = std::prev(used_.end())});
  while (places_.size() > 1 && (places_.size() > limits_.responses || bytes_ > limits_.bytes))
    remove(std::string(used_.front()));
}

std::shared_ptr<const StoredResponse> ResponseStore::find(const std::string& id) {
  const std::lock_guard lock(mutex_);
  const auto found = places_.find(id);
  if (found == places_.end()) return nullptr;
  used_.splice(used_.end(), used_, found->second.used);
  return found->second.response;
}

bool ResponseStore::erase(const std::string& id) {
  const std::lock_guard lock(mutex_);
  if (!places_.contains(id)) return false;
  remove(id);
  return true;
}

void ResponseStore::remove(const std::string& id) {
  const auto found = places_.find(id);
  bytes_ -= found->second.response->bytes();
  used_.erase(found->second.used);
  places_.erase(found);
}

}  // namespace ferry
