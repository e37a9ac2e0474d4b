"""A mixture-of-experts layer over processes, on torch tensors, with our experts on your weights.

    torchrun --nproc-per-node 2 examples/python/moe_layer.py

Ranks that a shell loop starts with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT do as well.
"""

import tokenferry
import torch

EXPERTS, TOPK, HIDDEN, INTER, TOKENS = 16, 2, 256, 128, 32

with tokenferry.Comm.from_env() as comm:
    a2a = tokenferry.AllToAll(comm, num_experts=EXPERTS, topk=TOPK, hidden=HIDDEN, max_tokens=TOKENS, renormalize=True)

    # Each rank has the weights of its own experts; here all make the same ones and take theirs.
    torch.manual_seed(0)
    router = torch.randn(HIDDEN, EXPERTS) / HIDDEN**0.5
    w13 = (torch.randn(EXPERTS, 2 * INTER, HIDDEN) / HIDDEN**0.5).bfloat16()
    w2 = (torch.randn(EXPERTS, HIDDEN, INTER) / INTER**0.5).bfloat16()
    own = slice(comm.rank * a2a.slots_per_rank, (comm.rank + 1) * a2a.slots_per_rank)
    experts = tokenferry.Experts(w13[own].contiguous(), w2[own].contiguous(), comm=comm)

    torch.manual_seed(1 + comm.rank)
    x = torch.randn(TOKENS - comm.rank, HIDDEN).bfloat16()  # ranks need not have equally many
    y = tokenferry.moe_forward(a2a, x, x.float() @ router, experts)

    # The same with experts in torch: rows.x and rows.out are tensors over the exchange's memory.
    def in_torch(rows):
        for slot, count in enumerate(rows.counts):
            part = rows.x[slot, :count]
            gate, up = (part @ w13[own][slot].T).chunk(2, dim=-1)
            rows.out[slot, :count] = (torch.nn.functional.silu(gate) * up) @ w2[own][slot].T

    z = tokenferry.moe_forward(a2a, x, x.float() @ router, in_torch)
    print(f"rank {comm.rank}: {tuple(y.shape)}, greatest difference to torch's experts {(y - z).abs().max():.4f}")
    comm.barrier()
