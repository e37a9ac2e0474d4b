"""A rank's place among the others: from a launcher's variables, torch's process groups, or mpi4py."""

import atexit
import base64
import os
import secrets
import socket
import sys
import time
import weakref

from . import _core
from .errors import ConfigError

_live_comms = weakref.WeakSet()
_live_lanes = weakref.WeakSet()


def close_at_exit(lane):
    """An AllToAll keeps its part of the Comm, which could not leave."""
    _live_lanes.add(lane)


def _leave_at_exit():
    """Ranks that still wait for this one shall hear why it is gone, not that it left in good order."""
    error = getattr(sys, "last_value", None)
    if error is not None:
        for comm in list(_live_comms):
            if not comm.closed:
                comm.abort(f"it ended with {type(error).__name__}: {error}".splitlines()[0])
    for closable in [*_live_lanes, *_live_comms]:
        closable.close()


atexit.register(_leave_at_exit)


class TorchStore:
    """A torch.distributed store as ours. Values travel as text, which every torch store carries."""

    def __init__(self, store):
        self._store = store

    def set(self, key, value):
        self._store.set(key, base64.b64encode(value).decode())

    def wait(self, key, timeout):
        # check() instead of the store's own wait: that one logs each time it is over.
        deadline = time.monotonic() + timeout
        pause = 0.0005
        while not self._store.check([key]):
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.01)
        return base64.b64decode(self._store.get(key))

    def remove(self, key):
        try:
            self._store.delete_key(key)
        except (NotImplementedError, RuntimeError):
            pass  # FileStore and others cannot forget; every Comm has a group of its own


def _choose_transport(store, rank, size, group, epoch, timeout):
    """shm where all ranks are on one host, else fabric, which finds neighbours by itself."""
    group = f"{group}/{epoch}"
    host = _host_name().encode()
    store.set(f"{group}/host/{rank}", host)
    for other in range(size):
        theirs = store.wait(f"{group}/host/{other}", timeout)
        if theirs is None:
            raise ConfigError(f"rank {other} of '{group}' did not say within {timeout} s where it runs")
        if theirs != host:
            return "fabric"
    return "shm"


def _host_name():
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as boot:
            return f"{socket.gethostname()} {boot.read().strip()}"
    except OSError:
        return socket.gethostname()


def _finish(comm):
    _live_comms.add(comm)
    return comm


def join(store, rank, size, *, transport="auto", group="world", threads=1, join_timeout=30.0, **options):
    """Meets the other ranks of `group` through `store` and returns this rank's Comm.

    store: a TcpStore, LocalStore, or any object with set(key, bytes), wait(key, seconds) -> bytes or
        None, and remove(key).
    transport: 'shm' (one host), 'fabric', 'mpi', 'inproc', or 'auto': shm where all ranks are on one
        host, else fabric.
    threads: that compute for this rank, the calling one included.
    join_timeout: seconds until the ranks that have come give up.
    options: start_timeout (seconds), epoch, node, ranks_per_host, host, fabric_provider,
        fabric_rails, fabric_progress_thread (docs/cluster.md).
    """
    if transport == "auto":
        transport = _choose_transport(store, rank, size, group, options.get("epoch", 0), join_timeout)
    return _finish(
        _core.join(
            store,
            dict(
                rank=rank, size=size, transport=transport, group=group, threads=threads,
                join_timeout=join_timeout, **options,
            ),
        )
    )


_env_store = None  # served, or reached, as long as this process lives
_env_comms = 0  # how many Comms have been made over it; the same on all ranks


def from_env(**options):
    """The ranks that torchrun, mpirun, srun or a shell loop has started. Collective; may be repeated.

    Reads RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT (or what Open MPI, MPICH and Slurm set) and
    FERRY_TOKEN, the secret where others can reach that address (docs/cluster.md). Options as join().
    """
    global _env_store, _env_comms
    world = _core.find_world()
    if world is None:
        raise ConfigError("no launcher's variables (RANK and WORLD_SIZE, or those of mpirun or srun)")
    options.setdefault("node", world["node"])
    if _env_store is None:
        _env_store = _reach_store(world, options.get("join_timeout", 30.0))
    options.setdefault("group", f"world/{_env_comms}")
    options.setdefault("epoch", int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    _env_comms += 1
    return join(_env_store, world["rank"], world["size"], **options)


def _reach_store(world, timeout):
    if world["size"] == 1:
        return _core.LocalStore()
    if not world["master_port"]:
        raise ConfigError("the launcher did not say where ranks meet; set MASTER_ADDR and MASTER_PORT")
    return _core.TcpStore(
        world["master_host"], world["master_port"], world["rank"] == 0, world["secret"], timeout
    )


_groups = {}  # how many Comms each process group has had; the same on all of its ranks


def from_process_group(group=None, **options):
    """The ranks of a torch.distributed process group (None: the default one), through its store.

    Collective over the group. Options as join().
    """
    import torch.distributed as dist
    from torch.distributed import distributed_c10d as c10d

    group = c10d._get_default_group() if group is None else group
    store = c10d._world.pg_map[group][1]
    name = c10d._world.pg_names[group]
    number = _groups[name] = _groups.get(name, -1) + 1
    options.setdefault("group", f"tokenferry/{name}/{number}")
    return join(TorchStore(store), dist.get_rank(group), dist.get_world_size(group), **options)


def from_mpi(comm=None, **options):
    """The ranks of an mpi4py communicator (None: COMM_WORLD). Collective. Options as join().

    They meet at a store that its rank 0 serves meanwhile; its address goes by bcast.
    """
    if comm is None:
        from mpi4py import MPI

        comm = MPI.COMM_WORLD
    rank, size = comm.Get_rank(), comm.Get_size()
    timeout = options.get("join_timeout", 30.0)
    store = place = None
    if rank == 0:
        secret = secrets.token_hex(16)
        store = _core.TcpStore("0.0.0.0" if size > 1 else "127.0.0.1", 0, True, secret, timeout)
        place = (socket.gethostname(), store.port, secret)
    host, port, secret = comm.bcast(place, root=0)
    if rank != 0:
        here = host == socket.gethostname()
        store = _core.TcpStore("127.0.0.1" if here else host, port, False, secret, timeout)
    made = join(store, rank, size, **options)
    comm.Barrier()  # nobody needs the store any more
    return made


def local(ranks, threads=1, start_timeout=30.0):
    """The Comms of a new group whose ranks are threads of this process, one for each."""
    return [_finish(comm) for comm in _core.local_comms(ranks, threads, start_timeout)]


for _way in (from_env, from_process_group, from_mpi, local, join):
    setattr(_core.Comm, _way.__name__, staticmethod(_way))
