"""Expert parallelism between ranks: tokens to the experts that they need, and results home.

Comm             a rank's place among the others (from_env, from_process_group, from_mpi, local)
AllToAll         the exchange: four phases, or moe_forward around your experts
DeviceAllToAll   the same in a GPU's memory, on your stream
Experts          our experts on your weights
eplb             where experts should lie, by load
Engine           a whole model in this process: prompts in, tokens out
compat           the names that code for other systems already has
"""

from . import _core, eplb
from ._core import BoundDeviceExchange, BoundExchange, Comm, ExpertRows, LocalStore, Placement, Routing, Store, TcpStore, __version__
from .all_to_all import AllToAll, Experts, moe_forward, moe_forward_from_topk
from .comm import from_env, from_mpi, from_process_group, join, local
from .device import DeviceAllToAll
from .engine import CompletionOutput, Engine, RequestOutput, SamplingParams, TokenEvent
from .errors import (
    BrokenContract,
    ConfigError,
    Error,
    ModelError,
    Refused,
    StaleRows,
    TransportError,
)

__all__ = [
    "AllToAll", "BoundDeviceExchange", "BoundExchange", "BrokenContract", "Comm", "CompletionOutput",
    "ConfigError", "DeviceAllToAll", "Engine", "Error", "ExpertRows", "Experts", "LocalStore", "ModelError", "Placement", "Refused",
    "RequestOutput", "Routing", "SamplingParams", "StaleRows", "Store", "TcpStore", "TokenEvent",
    "TransportError", "__version__", "eplb", "from_env", "from_mpi", "from_process_group", "join",
    "local", "moe_forward", "moe_forward_from_topk",
]
