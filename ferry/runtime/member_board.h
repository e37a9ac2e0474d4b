// What members of an elastic group tell each other through the store while they have no transport:
// that they live, that they have come to the boundary, that they are gone.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ferry/store.h"

namespace ferry {

/// One process's view, under the name that its Membership has. Borrows the store. Threads: one at a
/// time. Errors: TransportError where the store cannot be reached.
class MemberBoard {
 public:
  /// The ranks that the leader means to have with the next newcomer, whose rank will be the last;
  /// none: it has not said.
  static std::optional<int> size_with_next(Store& store, const std::string& group);

  /// Says which process this is.
  MemberBoard(Store& store, const std::string& group, std::string name);

  /// At the boundary behind epoch `tried`: this one has come. `dead`: members that it knows to be
  /// dead.
  void come(std::uint64_t tried, const std::vector<std::string>& dead);

  /// What a member said when it came there; none: it has not come.
  std::optional<std::vector<std::string>> word_of(const std::string& name, std::uint64_t tried);

  /// Nobody needs what members have said there any more.
  void forget(const std::vector<std::string>& names, std::uint64_t tried);

  /// This one does not come again.
  void leave();

  /// The leader: see size_with_next().
  void tell_size_with_next(int ranks);

  /// The leader: the group goes on without this member, as it was asked to.
  void dismiss(const std::string& name);
  bool is_dismissed();

  /// Whether it said that it does not come again, or is a process of this host that has ended.
  bool has_left(const std::string& name);

 private:
  std::string key(const char* what, const std::string& name) const;
  std::string key_of_word(const std::string& name, std::uint64_t tried) const;

  Store& store_;
  const std::string prefix_;
  const std::string name_;
};

}  // namespace ferry
