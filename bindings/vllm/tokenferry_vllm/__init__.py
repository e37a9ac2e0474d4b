"""Expert parallelism of vLLM on CPUs: its experts' tokens travel by Tokenferry's all-to-all.

vLLM calls register() in each of its processes (entry point group vllm.general_plugins). docs/vllm.md of
the project says what works, what is refused, and which variables there are.
"""

VLLM_VERSION = "0.32.0"  # the only one that this has been tried with


def register():
    """Makes vLLM's unquantised MoE layers exchange tokens between ranks. May be called again.

    Raises RuntimeError where vLLM is of another version. Does nothing where it does not run on a CPU.
    """
    import vllm

    version = vllm.__version__.split("+")[0]
    if version != VLLM_VERSION:
        raise RuntimeError(
            f"tokenferry-vllm is for vLLM {VLLM_VERSION}, and this is {vllm.__version__}: install that "
            f"version, or leave the plug-in out with VLLM_PLUGINS"
        )
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from . import layers

        layers.register()
