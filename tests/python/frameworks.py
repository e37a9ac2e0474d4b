"""The same tests with numpy's arrays and with torch's tensors."""

import numpy as np
import pytest

try:
    import torch
except ImportError:
    torch = None

FRAMEWORKS = [
    "numpy",
    pytest.param("torch", marks=pytest.mark.skipif(torch is None, reason="torch is not installed: its tensors are not tested")),
]


def make(array, framework, dtype=None):
    """A numpy array as the framework's, of `dtype` ('bfloat16', ...)."""
    if framework == "torch":
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor if dtype is None else tensor.to(getattr(torch, dtype))
    if dtype is None:
        return array
    if dtype == "bfloat16":
        import ml_dtypes

        return array.astype(ml_dtypes.bfloat16)
    return array.astype(dtype)


def read(array, dtype=np.float32):
    """As numpy, values converted."""
    if torch is not None and isinstance(array, torch.Tensor):
        if array.dtype in (torch.bfloat16, torch.float8_e4m3fn):
            array = array.float()
        return array.numpy().astype(dtype)
    return array.astype(dtype)
