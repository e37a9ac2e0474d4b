"""Arithmetic that DeepEP's callers and tests share, on torch tensors."""

from .... import _core


def ceil_div(x, y):
    return -(-x // y)


def align(x, y):
    return ceil_div(x, y) * y


def calc_diff(x, y):
    """1 minus the cosine-like similarity of x + 1 and y + 1; 0 for equal tensors."""
    x, y = x.double() + 1, y.double() + 1
    return (1 - 2 * (x * y).sum() / (x.square() + y.square()).sum()).item()


def per_token_cast_to_fp8(x):
    """(codes float8_e4m3fn [m, n], scales float32 [m, ceil(n / 128)]): greatest magnitude / 448."""
    import torch

    codes, scales = _core.quantize(x.contiguous(), "fp8")
    return torch.from_numpy(codes).view(torch.float8_e4m3fn), torch.from_numpy(scales)


def per_token_cast_back(x_fp8, x_scales):
    """bfloat16 of codes and scales; these float32, or four UE8M0 exponents in an int32."""
    import torch

    if x_scales.dtype == torch.int32:
        exponents = x_scales.clone(memory_format=torch.contiguous_format).view(torch.uint8).to(torch.int32)
        x_scales = (exponents << 23).view(torch.float32)
    columns = x_fp8.shape[-1]
    factors = x_scales.reshape(x_fp8.shape[0], -1).repeat_interleave(128, dim=1)[:, :columns]
    return (x_fp8.float() * factors).to(torch.bfloat16)


def inplace_unique(x, num_slots):
    """Each row's values in [0, num_slots) once, the most frequent of them in falling order, then -1."""
    import torch

    for row in x:
        found = sorted({int(v) for v in row if 0 <= v < num_slots}, reverse=True)
        row.fill_(-1)
        row[: len(found)] = torch.tensor(found, dtype=x.dtype)


def create_grouped_scores(scores, group_idx, num_groups):
    """Scores of experts outside the chosen groups become 0."""
    import torch

    tokens, experts = scores.shape
    chosen = torch.zeros((tokens, num_groups), dtype=torch.bool).scatter_(1, group_idx, True)
    return scores * chosen.repeat_interleave(experts // num_groups, dim=1)


def hash_tensor(t):
    import torch

    return t.contiguous().view(torch.int32).sum().item()


def hash_tensors(*tensors):
    value = 0
    for t in tensors:
        if isinstance(t, (tuple, list)):
            value ^= hash_tensors(*t)
        elif t is not None:
            value ^= hash_tensor(t)
    return value


def count_bytes(*tensors):
    total = 0
    for t in tensors:
        if isinstance(t, (tuple, list)):
            total += count_bytes(*t)
        elif t is not None:
            total += t.numel() * t.element_size()
    return total


def safe_div(a, b):
    """0 / 0 is 0."""
    return 0 if a == 0 and b == 0 else a / b
