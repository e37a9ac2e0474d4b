"""Callers' arrays as numpy arrays over the same memory, and back. bfloat16 and fp8 are their codes
(uint16, uint8) in between, so that nothing here needs numpy to know them."""

import sys

import numpy

from .. import _arrays
from ..errors import ConfigError

_TORCH_CODES = {"bfloat16": "int16", "float8_e4m3fn": "uint8"}


def is_torch(array):
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(array, torch.Tensor)


def outside_graphs(function):
    """The function as one that torch.compile calls and does not look into, where there is torch."""
    torch = sys.modules.get("torch")
    return function if torch is None else torch.compiler.disable(function)


def dtype_name(array):
    name = str(array.dtype).removeprefix("torch.")
    # numpy without ml_dtypes has codes; who says uint16 or uint8 means them (docs/python.md).
    return {"uint16": "bfloat16", "uint8": "float8_e4m3fn"}.get(name, name)


def to_numpy(array):
    """A numpy array over the same memory; codes where numpy has no such type."""
    if is_torch(array):
        torch = sys.modules["torch"]
        array = array.detach()
        name = str(array.dtype).removeprefix("torch.")
        if name in _TORCH_CODES:
            array = array.view(getattr(torch, _TORCH_CODES[name]))
        array = array.numpy()
        return array.view(numpy.uint16) if name == "bfloat16" else array
    if array.dtype.name == "bfloat16":
        return array.view(numpy.uint16)
    if array.dtype.name.startswith("float8"):
        return array.view(numpy.uint8)
    return array


def from_numpy(array, name, torch_too):
    """The caller's array of element type `name` over the memory of `array`."""
    if torch_too:
        torch = sys.modules["torch"]
        signed = array.view(numpy.int16) if name == "bfloat16" else array
        tensor = torch.from_numpy(signed)
        return tensor.view(getattr(torch, name)) if name in _TORCH_CODES else tensor
    if name in _TORCH_CODES:
        return _arrays.viewed(array, name, False)
    return array


def to_f32(array, name):
    """Elements as float32: of codes of bfloat16, or of a numpy type."""
    if name == "bfloat16":
        return (array.astype(numpy.uint32) << 16).view(numpy.float32)
    return array.astype(numpy.float32)


def from_f32(array, name):
    """Rounded to nearest, ties to even; bfloat16 as codes."""
    if name != "bfloat16":
        return array.astype(name)
    bits = numpy.ascontiguousarray(array, numpy.float32).view(numpy.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(numpy.uint16)
    return numpy.where(numpy.isnan(array), numpy.uint16(0x7FC0), rounded)


def column_major(scales):
    """The same [rows, groups] with each group's factors behind one another, beginning at a multiple of four: the
    layout in which matrix products of fp8 read them."""
    rows, groups = scales.shape
    wide = numpy.zeros((groups, -(-rows // 4) * 4), scales.dtype)
    wide[:, :rows] = scales.T
    return wide.T[:rows]


def copy_into(target, values):
    """Writes a numpy array (codes where to_numpy gives them) into the caller's array."""
    view = to_numpy(target)
    if view.shape != values.shape or view.dtype != values.dtype:
        raise ConfigError(
            f"out is {view.dtype} {view.shape}; it must be {values.dtype} {values.shape}")
    view[...] = values


def comm_of(group, comm=None, **options):
    """A Comm of whatever stands for the ranks: ours, a torch process group, or an mpi4py communicator. Without any:
    torch's default group where there is one, else MPI's world."""
    from .. import _core
    from ..comm import from_mpi, from_process_group

    for given in (group, comm):
        if isinstance(given, _core.Comm):
            return given
    if group is None and comm is None:
        dist = sys.modules.get("torch.distributed")
        if dist is not None and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
    return from_process_group(group, **options) if group is not None else from_mpi(comm, **options)


def kept(comm, key, owners, make):
    """make(), once for each key as long as the Comm lives. `owners`: objects whose ids stand in the key; they
    are kept as well, so that the ids stay theirs."""
    cache = comm.__dict__.setdefault("_kept", {})
    if key not in cache:
        cache[key] = (owners, make())
    return cache[key][1]


class Packer:
    """Arrays of one message behind each other, each with its shape known to the receiver."""

    def __init__(self):
        self._parts = []

    def add(self, array):
        self._parts.append(numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8))
        return self

    def bytes(self):
        return numpy.concatenate(self._parts) if self._parts else numpy.empty(0, numpy.uint8)


class Unpacker:
    def __init__(self, message):
        self._message, self._at = message, 0

    def take(self, dtype, shape):
        size = int(numpy.prod(shape, dtype=numpy.int64)) * numpy.dtype(dtype).itemsize
        part = self._message[self._at : self._at + size]
        self._at += size
        return numpy.frombuffer(part.tobytes(), dtype).reshape(shape)
