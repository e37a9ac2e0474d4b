// Several hosts on one machine: network namespaces, each with a cable of limited rate to a switch,
// which is one more. Only root can make them.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace ferry {

class NetworkHosts {
 public:
  /// Why this process cannot make any; empty if it may try. Makes nothing.
  static std::string why_not();

  /// Throws Error that says what failed.
  explicit NetworkHosts(int count);
  /// Takes them down, in the process that made them.
  ~NetworkHosts();
  NetworkHosts(const NetworkHosts&) = delete;
  NetworkHosts& operator=(const NetworkHosts&) = delete;

  int count() const { return static_cast<int>(names_.size()); }

  /// Of the first host's end of its cable; others differ in the last number.
  std::string address(int host) const { return "10.77.0." + std::to_string(host + 1); }

  /// Pulls the host's cable.
  void cut(int host) const;

  /// Moves this thread, and what it starts from now on, to the host.
  void enter(int host) const;

  /// The same for the life of the object.
  class Visit {
   public:
    Visit(const NetworkHosts& hosts, int host);
    ~Visit();
    Visit(const Visit&) = delete;
    Visit& operator=(const Visit&) = delete;

   private:
    int here_;
  };

 private:
  void remove() const;

  pid_t owner_;
  std::string switch_;
  std::vector<std::string> names_;
};

}  // namespace ferry
