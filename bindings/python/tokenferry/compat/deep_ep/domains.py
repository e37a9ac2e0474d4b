"""Which ranks DeepEP would reach by NVLink (those of one host), and which by RDMA."""

import os

from ...errors import ConfigError

#: So many consecutive ranks count as one host, whatever host they are on: several "hosts" on one machine.
RANKS_PER_HOST = "FERRY_RANKS_PER_HOST"


def physical_domain(comm):
    """(hosts, ranks of each) where all hosts have as many, in order; else every rank is a host."""
    given = os.environ.get(RANKS_PER_HOST)
    if given is not None:
        each = int(given) if given.isdigit() else 0
        if each < 1 or comm.size % each:
            raise ConfigError(f"{RANKS_PER_HOST} is '{given}'; it must be a divisor of the {comm.size} ranks")
        return comm.size // each, each
    hosts = [comm.host_of(rank) for rank in range(comm.size)]
    count = len(set(hosts))
    each = comm.size // count
    regular = comm.size % count == 0 and hosts == [hosts[rank // each * each] for rank in range(comm.size)]
    return (count, each) if regular else (comm.size, 1)


def logical_domain(comm, hybrid):
    return physical_domain(comm) if hybrid else (1, comm.size)
