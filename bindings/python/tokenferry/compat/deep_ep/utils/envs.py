"""Starting the ranks of a test, and which of them are neighbours."""

import os
import random

from ..domains import logical_domain, physical_domain

_local_rank = None
_seeds = {"global": 0, "local": 0}


def init_seed(global_seed):
    """Torch's and Python's generators, by rank."""
    import torch
    import torch.distributed as dist

    _seeds.update({"global": global_seed, "local": global_seed + dist.get_rank()})
    torch.manual_seed(_seeds["local"])
    random.seed(_seeds["local"])


def get_local_seed():
    return _seeds["local"]


def get_global_seed():
    return _seeds["global"]


def dist_print(s="", once_in_node=False):
    """Collective: all ranks print, or the first of each node."""
    import torch.distributed as dist

    if not once_in_node or _local_rank == 0:
        print(s, flush=True)
    dist.barrier()


def init_dist(local_rank, num_local_ranks, seed=0):
    """(rank, number of ranks, group of all) of torch.distributed over gloo; seeds torch by rank, and makes bfloat16 its
    default type, as DeepEP's does."""
    global _local_rank
    import torch
    import torch.distributed as dist

    _local_rank = local_rank
    nodes, node = int(os.getenv("WORLD_SIZE", "1")), int(os.getenv("RANK", "0"))
    address, port = os.getenv("MASTER_ADDR", "127.0.0.1"), os.getenv("MASTER_PORT", "8361")
    rank, size = node * num_local_ranks + local_rank, nodes * num_local_ranks
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{port}", world_size=size, rank=rank)
    torch.set_default_dtype(torch.bfloat16)
    init_seed(seed)
    return rank, size, dist.new_group(list(range(size)))


def _ask(group, question):
    from ... import _frames as frames
    from .... import _core

    comm = frames.comm_of(group)
    try:
        return question(comm)
    finally:
        if not isinstance(group, _core.Comm):
            comm.close()


def get_physical_domain_size(group):
    """Collective: (hosts, ranks of each)."""
    return _ask(group, physical_domain)


def get_logical_domain_size(group, allow_hybrid_mode=True):
    """Collective: (scaleout ranks, scaleup ranks)."""
    return _ask(group, lambda comm: logical_domain(comm, allow_hybrid_mode))


def get_nvlink_gbs(factor=0.9):
    return 0


def get_rdma_gbs(nic_name=None):
    """DeepEP's answer where it cannot tell is 0, by which its tests divide; here 1, without meaning."""
    return 1


def check_fast_rdma_atomic_support(nic_name=None):
    return False
