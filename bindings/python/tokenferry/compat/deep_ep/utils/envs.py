"""Starting the ranks of a test."""

import os


def init_dist(local_rank, num_local_ranks, seed=0):
    """(rank, number of ranks, group of all) of torch.distributed over gloo; seeds torch by rank."""
    import torch
    import torch.distributed as dist

    nodes, node = int(os.getenv("WORLD_SIZE", "1")), int(os.getenv("RANK", "0"))
    address, port = os.getenv("MASTER_ADDR", "127.0.0.1"), os.getenv("MASTER_PORT", "8361")
    rank, size = node * num_local_ranks + local_rank, nodes * num_local_ranks
    dist.init_process_group("gloo", init_method=f"tcp://{address}:{port}", world_size=size, rank=rank)
    torch.manual_seed(seed + rank)
    return rank, size, dist.new_group(list(range(size)))
