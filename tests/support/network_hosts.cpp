#include "support/network_hosts.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "ferry/core/error.h"
#include "ferry/transport/unique_fd.h"

namespace ferry {

namespace {

/// A good network of today, and slower than this machine's memory.
constexpr const char* kCable = "root tbf rate 10gbit burst 4mb latency 50ms";

bool command(const std::string& line) {
  return std::system((line + " >/dev/null 2>&1").c_str()) == 0;
}

void must(const std::string& line) {
  if (!command(line)) fail<Error>("network namespaces do not work here: {} failed", line);
}

}  // namespace

std::string NetworkHosts::why_not() {
  if (geteuid() != 0) return "only root makes network namespaces";
  // Looked for once: GoogleTest asks for the parameters of every suite before it runs any test.
  static const bool installed = command("command -v ip && command -v tc");
  return installed ? "" : "ip and tc are not installed (iproute2)";
}

NetworkHosts::NetworkHosts(int count) : owner_(getpid()) {
  // Interfaces have names of at most 15 letters.
  static int made = 0;
  const std::string id = fmt::format("{}{}", owner_, static_cast<char>('a' + made++ % 26));
  switch_ = fmt::format("fs{}", id);
  for (int h = 0; h < count; ++h) names_.push_back(fmt::format("f{}{}", h, id));
  try {
    must("ip netns add " + switch_);
    must("ip -n " + switch_ + " link add bridge type bridge");
    must("ip -n " + switch_ + " link set bridge up");
    for (int h = 0; h < count; ++h) {
      const std::string& name = names_[static_cast<std::size_t>(h)];
      const std::string plug = fmt::format("plug{}", h);
      must("ip netns add " + name);
      must(fmt::format(
          "ip -n {} link add eth type veth peer name {} netns {}", name, plug, switch_));
      must("ip -n " + switch_ + " link set " + plug + " master bridge up");
      must("ip -n " + name + " addr add " + address(h) + "/24 dev eth");
      must("ip -n " + name + " link set lo up");
      must("ip -n " + name + " link set eth up");
      must("tc -n " + name + " qdisc add dev eth " + kCable);
    }
  } catch (const Error&) {
    remove();
    throw;
  }
}

NetworkHosts::~NetworkHosts() {
  if (getpid() == owner_) remove();
}

void NetworkHosts::remove() const {
  for (const std::string& name : names_) command("ip netns del " + name);
  command("ip netns del " + switch_);
}

void NetworkHosts::cut(int host) const {
  must("ip -n " + names_[static_cast<std::size_t>(host)] + " link set eth down");
}

void NetworkHosts::enter(int host) const {
  const std::string path = "/run/netns/" + names_[static_cast<std::size_t>(host)];
  const UniqueFd there(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!there.valid() || setns(there.get(), CLONE_NEWNET) != 0)
    fail<Error>("cannot enter {}: {}", path, std::strerror(errno));
}

NetworkHosts::Visit::Visit(const NetworkHosts& hosts, int host)
    : here_(open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC)) {
  hosts.enter(host);
}

NetworkHosts::Visit::~Visit() {
  if (setns(here_, CLONE_NEWNET) != 0) std::abort();  // nothing after this would be where it says
  close(here_);
}

}  // namespace ferry
