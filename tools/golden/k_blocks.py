"""Blocks of 256 of f32 rows, simply rounded: the package gguf reads these types and does not write them."""

import gguf
import numpy as np

Q4_K = gguf.GGMLQuantizationType.Q4_K
Q6_K = gguf.GGMLQuantizationType.Q6_K


def halves(x: np.ndarray) -> np.ndarray:
    return x.astype("<f2").reshape(-1, 1).view(np.uint8)


def part(x: np.ndarray, unit: np.ndarray, most: int) -> np.ndarray:
    """x in whole units, 0 where there is none."""
    return np.clip(np.rint(np.divide(x, unit, out=np.zeros_like(x), where=unit != 0)), -most - 1, most).astype(np.int32)


def q4_k(rows: np.ndarray) -> np.ndarray:
    """code * scale - least of 32 numbers, both in 6 bits of a unit of 256."""
    x = rows.reshape(-1, 8, 32)
    least = np.maximum(-x.min(axis=2), 0)
    scale = (x.max(axis=2) + least) / 15
    unit, least_unit = (np.float16(v.max(axis=1, keepdims=True) / 63).astype(np.float32) for v in (scale, least))
    s, m = np.clip(part(scale, unit, 63), 0, 63), np.clip(part(least, least_unit, 63), 0, 63)
    codes = np.clip(part(x + (m * least_unit)[..., None], (s * unit)[..., None], 15), 0, 15)
    packed = np.zeros((len(x), 12), np.uint8)
    packed[:, 0:4] = s[:, :4] | s[:, 4:] >> 4 << 6
    packed[:, 4:8] = m[:, :4] | m[:, 4:] >> 4 << 6
    packed[:, 8:12] = s[:, 4:] & 15 | (m[:, 4:] & 15) << 4
    pairs = codes.reshape(-1, 4, 2, 32)
    nibbles = (pairs[:, :, 0] | pairs[:, :, 1] << 4).astype(np.uint8).reshape(-1, 128)
    return np.concatenate([halves(unit), halves(least_unit), packed, nibbles], axis=1).reshape(len(rows), -1)


def q6_k(rows: np.ndarray) -> np.ndarray:
    """(code - 32) * scale of 16 numbers, scales in 8 bits of a unit of 256."""
    x = rows.reshape(-1, 16, 16)
    scale = np.abs(x).max(axis=2) / 31
    unit = np.float16(scale.max(axis=1, keepdims=True) / 127).astype(np.float32)
    s = part(scale, unit, 127)
    codes = (np.clip(part(x, (s * unit)[..., None], 31), -32, 31) + 32).reshape(-1, 2, 4, 32)  # halves, quarters of them
    low = codes[:, :, :2] & 15 | (codes[:, :, 2:] & 15) << 4
    high = sum(codes[:, :, i] >> 4 << 2 * i for i in range(4))
    parts = [low.reshape(-1, 128), high.reshape(-1, 64), s.astype(np.int8).view(np.uint8)]
    return np.concatenate([p.astype(np.uint8) for p in parts] + [halves(unit)], axis=1).reshape(len(rows), -1)


QUANTIZE = {Q4_K: q4_k, Q6_K: q6_k}


def quantize(rows: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """As gguf.quants.quantize, of these types, too."""
    if kind not in QUANTIZE:
        return gguf.quants.quantize(rows, kind)
    flat = np.ascontiguousarray(rows, np.float32).reshape(-1, rows.shape[-1])
    blocks = QUANTIZE[kind](flat)
    return blocks.reshape(*rows.shape[:-1], blocks.shape[-1])
