// Responses that have ended, for who asks for them again or goes on behind them.
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>

namespace ferry {

struct StoredResponse {
  std::string response;   ///< as its client got it, in JSON
  std::string input;      ///< all items before its output, in JSON: a list
  bool logprobs = false;  ///< it has those of its text

  std::size_t bytes() const { return response.size() + input.size(); }
};

/// In memory, and bounded: those that nobody has used for longest leave first. Threads: any.
class ResponseStore {
 public:
  struct Limits {
    std::size_t responses = 4096;
    std::size_t bytes = 64U << 20;  ///< of their JSON; one that is larger is kept alone
  };

  explicit ResponseStore(const Limits& limits) : limits_(limits) {}

  ResponseStore() : ResponseStore(Limits{}) {}

  /// REQUIRES: none has this id.
  void put(const std::string& id, StoredResponse response);

  /// Null where there is none, or none any more.
  std::shared_ptr<const StoredResponse> find(const std::string& id);

  /// Whether it was there. What goes on behind it has its items, and stays.
  bool erase(const std::string& id);

 private:
  struct Place {
    std::shared_ptr<const StoredResponse> response;
    std::list<std::string>::iterator used;
  };

  void remove(const std::string& id);

  const Limits limits_;
  std::mutex mutex_;  // guards what follows
  std::unordered_map<std::string, Place> places_;
  std::list<std::string> used_;  // ids, the last one was used just now
  std::size_t bytes_ = 0;
};

}  // namespace ferry
