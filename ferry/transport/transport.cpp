#include "ferry/transport.h"

#include <algorithm>

namespace ferry {

int equal_hosts(const Transport& transport) {
  int hosts = 1;
  for (Rank rank = 0; rank < transport.size(); ++rank)
    hosts = std::max(hosts, transport.host_of(rank) + 1);
  if (transport.size() % hosts != 0) return 1;
  const int ranks_per_host = transport.size() / hosts;
  for (Rank rank = 0; rank < transport.size(); ++rank)
    if (transport.host_of(rank) != rank / ranks_per_host) return 1;
  return hosts;
}

}  // namespace ferry
