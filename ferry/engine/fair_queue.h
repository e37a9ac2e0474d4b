// Requests that wait for a place: clients take turns, each client's requests keep their order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <unordered_map>

#include "ferry/engine/step_record.h"

namespace ferry {

/// The next request is the oldest one of the client whose turn it is; behind it the turn goes on to
/// the next client that has any. So who sends a thousand requests delays others by one. Threads:
/// one at a time.
class FairQueue {
 public:
  void push(Admission admission);

  bool empty() const { return turns_.empty(); }

  std::size_t size() const { return size_; }

  /// REQUIRES: not empty().
  Admission& front();
  void pop();

  /// False when it does not wait here.
  bool remove(std::uint64_t id);

 private:
  std::unordered_map<std::uint64_t, std::deque<Admission>> waiting_;  // of a client; none is empty
  std::deque<std::uint64_t> turns_;                                   // the clients in waiting_
  std::size_t size_ = 0;
};

}  // namespace ferry
