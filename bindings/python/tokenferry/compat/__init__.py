"""The names that code for other systems already has, over Tokenferry on CPU tensors.

    import tokenferry.compat
    tokenferry.compat.enable("deep_ep")
    import deep_ep                      # ours

Known: deep_ep, pplx_kernels, eplb, mooncake, dlinfer_moe, sgl_jax_moe. docs/python.md has the table of
what is accepted and has no meaning on a CPU (streams, SM counts, queue pairs).

Arrays are torch tensors on the CPU, or numpy arrays; callers get back what they brought.
"""

import importlib
import sys

from ..errors import ConfigError

#: What `enable` makes importable, and where it lies.
MODULES = {
    "deep_ep": {"deep_ep": "deep_ep", "deep_ep.utils": "deep_ep.utils",
                "deep_ep.utils.envs": "deep_ep.utils.envs", "deep_ep.utils.event": "deep_ep.utils.event",
                "deep_ep.utils.math": "deep_ep.utils.math", "deep_ep.utils.testing": "deep_ep.utils.testing"},
    "pplx_kernels": {"pplx_kernels": "pplx_kernels", "pplx_kernels.all_to_all": "pplx_kernels"},
    "eplb": {"eplb": "eplb"},
    "mooncake": {"mooncake": "mooncake", "mooncake.mooncake_ep_buffer": "mooncake.mooncake_ep_buffer"},
}


def enable(name):
    """`import name` finds ours from now on, in this process. Returns the module.

    Raises ConfigError where another one has been imported already.
    """
    if name not in MODULES:
        raise ConfigError(f"compat has no '{name}'; known are {', '.join(sorted(MODULES))}")
    for alias, path in MODULES[name].items():
        module = importlib.import_module(f"{__name__}.{path}")
        if sys.modules.setdefault(alias, module) is not module:
            raise ConfigError(f"another '{alias}' has been imported already; enable ours before")
    return sys.modules[name]
