"""What arrays.cpp asks of numpy and torch: types that DLPack does not carry between them and us."""

import sys

import numpy

_WIDTHS = {1: numpy.uint8, 2: numpy.uint16}


def _extended(name):
    """numpy's name for bfloat16 and fp8, where ml_dtypes has brought one."""
    try:
        import ml_dtypes
    except ImportError:
        return None
    return numpy.dtype(getattr(ml_dtypes, name))


def plain(array):
    """(array of plain integers over the same memory, name of its element type), or None."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(array, torch.Tensor):
        array = array.detach()
        name = str(array.dtype).removeprefix("torch.")
        if name.startswith("float8"):
            array = array.view(torch.uint8)
        return (array, name)
    if isinstance(array, numpy.ndarray):
        name = array.dtype.name
        if name in ("bfloat16", "float8_e4m3fn"):
            return (array.view(_WIDTHS[array.itemsize]), name)
    return None


def viewed(array, name, is_torch):
    """An array of integers as one of `name`; numpy without ml_dtypes keeps the integers."""
    if is_torch:
        return array.view(getattr(sys.modules["torch"], name))
    dtype = _extended(name)
    return array if dtype is None else array.view(dtype)


def empty(shape, name, is_torch):
    if is_torch:
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, name))
    if name in ("bfloat16", "float8_e4m3fn"):
        width = 2 if name == "bfloat16" else 1
        return viewed(numpy.empty(shape, _WIDTHS[width]), name, False)
    return numpy.empty(shape, name)
