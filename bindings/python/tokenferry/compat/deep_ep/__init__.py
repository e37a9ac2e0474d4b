"""DeepEP's V1 Buffer (deep_ep 2.1's legacy API): normal and low-latency mode, on CPU tensors."""

from . import utils
from .buffer import Buffer, Config
from .utils.event import EventHandle, EventOverlap

__version__ = "2.1.0"


def __getattr__(name):
    if name == "topk_idx_t":
        import torch

        return torch.int64
    raise AttributeError(name)


__all__ = ["Buffer", "Config", "EventHandle", "EventOverlap", "topk_idx_t", "utils"]
