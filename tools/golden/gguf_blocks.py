#!/usr/bin/env python3
"""tests/data/gguf/blocks.gguf: blocks of random bytes of every type that we read, and what the package gguf makes of them.

    python tools/golden/gguf_blocks.py OUT.gguf
"""

import sys

import gguf
import numpy as np

ROWS, COLUMNS = 3, 512
TYPES = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "MXFP4")
# Where a block has its f16 scales.
SCALES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,)}


def blocks(kind: gguf.GGMLQuantizationType, random: np.random.Generator) -> np.ndarray:
    if kind.name in ("F32", "F16"):
        return random.normal(size=(ROWS, COLUMNS)).astype(np.float32 if kind.name == "F32" else np.float16)
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    data = random.integers(0, 256, (ROWS * COLUMNS // elements, size), dtype=np.uint8)
    if kind.name == "BF16":
        data[:, 1] &= 0xBF  # finite
    for place in SCALES.get(kind.name, ()):
        scales = random.normal(scale=0.1, size=len(data)).astype(np.float16)
        scales[0], scales[1], scales[2] = 0, 6e-8, -65504  # the least and the greatest, too
        data[:, place : place + 2] = scales.view(np.uint8).reshape(-1, 2)
    if kind.name == "MXFP4":
        data[:4, 0] = 0, 1, 2, 254
    return data.reshape(ROWS, -1)


def main() -> None:
    writer = gguf.GGUFWriter(sys.argv[1], "blocks")
    random = np.random.default_rng(7)
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        data = blocks(kind, random)
        writer.add_tensor(name, data, raw_dtype=None if name in ("F32", "F16") else kind)
        writer.add_tensor(name + ".f32", gguf.quants.dequantize(data, kind).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
