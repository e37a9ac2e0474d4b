"""DeepEP's buffers on CPU tensors: V1 Buffer (deep_ep 2.1's legacy API), normal and low-latency mode, and V2
ElasticBuffer."""

from . import utils
from .buffer import Buffer, Config
from .elastic import ElasticBuffer, EPHandle
from .utils.envs import get_logical_domain_size, get_physical_domain_size
from .utils.event import EventHandle, EventOverlap

__version__ = "2.1.0"


def __getattr__(name):
    if name == "topk_idx_t":
        import torch

        return torch.int64
    raise AttributeError(name)


__all__ = [
    "Buffer", "Config", "EPHandle", "ElasticBuffer", "EventHandle", "EventOverlap", "get_logical_domain_size",
    "get_physical_domain_size", "topk_idx_t", "utils",
]
