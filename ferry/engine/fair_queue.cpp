#include "ferry/engine/fair_queue.h"

#include <algorithm>
#include <utility>

#include "ferry/core/error.h"

namespace ferry {

void FairQueue::push(Admission admission) {
  const std::uint64_t client = admission.request.client;
  std::deque<Admission>& own = waiting_[client];
  if (own.empty()) turns_.push_back(client);
  own.push_back(std::move(admission));
  ++size_;
}

Admission& FairQueue::front() {
  FERRY_CHECK(!empty(), "nothing waits");
  return waiting_.at(turns_.front()).front();
}

void FairQueue::pop() {
  FERRY_CHECK(!empty(), "nothing waits");
  const std::uint64_t client = turns_.front();
  turns_.pop_front();
  const auto own = waiting_.find(client);
  own->second.pop_front();
  --size_;
  if (own->second.empty())
    waiting_.erase(own);
  else
    turns_.push_back(client);
}

bool FairQueue::remove(std::uint64_t id) {
  for (auto own = waiting_.begin(); own != waiting_.end(); ++own) {
    std::deque<Admission>& requests = own->second;
    const auto found = std::find_if(
        requests.begin(), requests.end(), [&](const Admission& a) { return a.id == id; });
    if (found == requests.end()) continue;
    requests.erase(found);
    --size_;
    if (requests.empty()) {
      std::erase(turns_, own->first);
      waiting_.erase(own);
    }
    return true;
  }
  return false;
}

}  // namespace ferry
