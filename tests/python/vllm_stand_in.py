"""As much of vLLM 0.32's classes as tokenferry-vllm derives from and calls, for tests where vLLM is not.

The names and parameters are facts of vLLM (vllm_contract.json, which tests/vllm/contract.py compares with an
installed vLLM); what methods do here is what vLLM's documentation of them says, and no code of vLLM.
"""

import sys
import types
from types import SimpleNamespace

LAYERS = "vllm.model_executor.layers.fused_moe"


class CustomOp:
    @classmethod
    def register_oot(cls, _decorated_op_cls=None, name=None):
        op_registry_oot[name or cls.__name__] = _decorated_op_cls
        return _decorated_op_cls


op_registry_oot = {}


class FusedMoEExperts:
    def __init__(self, moe_config, quant_config, max_num_tokens=None, num_dispatchers=None):
        self.moe_config, self.quant_config = moe_config, quant_config

    def process_weights_after_loading(self, layer):
        pass


class FusedMoEExpertsModular(FusedMoEExperts):
    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts,
              expert_map, a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta,
              apply_router_weight_on_input):
        raise NotImplementedError


class MoEPrepareAndFinalizeNoDPEPModular:
    def post_init_setup(self, fused_experts):
        pass

    def topk_indices_dtype(self):
        return None

    def output_is_reduced(self):
        return False

    def prepare(self, a1, topk_weights, topk_ids, num_experts, expert_map, apply_router_weight_on_input,
                quant_config, defer_input_quant=False):
        if apply_router_weight_on_input:
            assert topk_ids.shape[1] == 1
            a1 = a1 * topk_weights.astype(a1.dtype)
        return a1, None, None, None, None

    def finalize(self, output, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input,
                 weight_and_reduce_impl):
        if output is not fused_expert_output:
            output[:] = fused_expert_output


class FusedMoEKernel:
    """prepare, experts unless no row came, finalize."""

    def __init__(self, prepare_finalize, fused_experts):
        self.prepare_finalize, self.fused_experts = prepare_finalize, fused_experts
        prepare_finalize.post_init_setup(fused_experts)

    def apply(self, layer, hidden_states, topk_weights, topk_ids, output):
        on_input = layer.apply_router_weight_on_input
        x, *_ = self.prepare_finalize.prepare(hidden_states, topk_weights, topk_ids, layer.global_num_experts,
                                              layer.expert_map, on_input, None, defer_input_quant=True)
        if len(x):
            self.fused_experts.apply(
                output=output, hidden_states=x, w1=layer.w13_weight, w2=layer.w2_weight, topk_weights=topk_weights,
                topk_ids=topk_ids, activation=layer.activation, global_num_experts=layer.global_num_experts,
                expert_map=layer.expert_map, a1q_scale=None, a2_scale=None, workspace13=None, workspace2=None,
                expert_tokens_meta=None, apply_router_weight_on_input=on_input)
        self.prepare_finalize.finalize(output, output, topk_weights, topk_ids, on_input, None)
        return output


class UnquantizedFusedMoEMethod(CustomOp):
    cpu_experts = FusedMoEExpertsModular  # a test sets its own

    def __init__(self, moe):
        self.moe, self.moe_kernel, self.experts_cls = moe, None, self.cpu_experts

    def _init_moe_kernel(self, layer):
        experts = self.experts_cls(moe_config=self.moe, quant_config=None)
        self.moe_kernel = FusedMoEKernel(MoEPrepareAndFinalizeNoDPEPModular(), experts)


class MoERunner:
    def __init__(self, moe_config, routed_experts, shared_experts=None):
        self.moe_config, self.routed_experts, self._shared_experts = moe_config, routed_experts, shared_experts
        self._forward_entry = self._select_forward()

    def _select_forward(self):
        return "vLLM's own"


def config(ep_rank=0, ep_size=1, **changes):
    """A FusedMoEConfig; names of its FusedMoEParallelConfig too."""
    parallel = dict(tp_size=1, pcp_size=1, dp_size=ep_size, ep_size=ep_size, tp_rank=0, pcp_rank=0, dp_rank=ep_rank,
                    ep_rank=ep_rank, sp_size=1, use_ep=ep_size > 1, all2all_backend="allgather_reducescatter",
                    enable_eplb=False)
    parallel |= {name: changes.pop(name) for name in list(changes) if name in parallel}
    moe = dict(num_experts=6, num_logical_experts=6, experts_per_token=2, hidden_dim=32, in_dtype="float32",
               max_num_tokens=64, is_lora_enabled=False)
    return SimpleNamespace(**moe | changes, moe_parallel_config=SimpleNamespace(
        **parallel, is_sequence_parallel=parallel["sp_size"] > 1))


def install(version="0.32.0", is_cpu=True, groups=None):
    """Puts these where plug-ins import them from. groups: what get_ep_group() and get_tp_group() give."""
    def module(name, **contents):
        made = sys.modules[name] = types.ModuleType(name)
        made.__path__ = []
        vars(made).update(contents)

    log = SimpleNamespace(info=lambda *_: None)
    groups = groups or {}
    try:
        import torch

        for name in ("moe_forward", "moe_forward_shared"):
            if not hasattr(torch.ops.vllm, name):
                torch.library.define(f"vllm::{name}", "(Tensor x) -> Tensor")
    except ImportError:
        module("torch", Tensor=type("Tensor", (), {}), int32="int32", ops=SimpleNamespace(vllm=SimpleNamespace(
            moe_forward="moe_forward", moe_forward_shared="moe_forward_shared")))
    for package in ("vllm.model_executor", "vllm.model_executor.layers", LAYERS, f"{LAYERS}.prepare_finalize",
                    f"{LAYERS}.runner", "vllm.distributed"):
        module(package)
    module("vllm", __version__=version)
    module("vllm.platforms", current_platform=SimpleNamespace(is_cpu=lambda: is_cpu))
    module("vllm.logger", init_logger=lambda name: log)
    module("vllm.distributed.parallel_state", get_ep_group=lambda: groups["ep"], get_tp_group=lambda: groups["tp"])
    module("vllm.model_executor.custom_op", op_registry_oot=op_registry_oot)
    module(f"{LAYERS}.modular_kernel", FusedMoEKernel=FusedMoEKernel)
    sys.modules[LAYERS].modular_kernel = sys.modules[f"{LAYERS}.modular_kernel"]
    module(f"{LAYERS}.prepare_finalize.no_dp_ep",
           MoEPrepareAndFinalizeNoDPEPModular=MoEPrepareAndFinalizeNoDPEPModular)
    module(f"{LAYERS}.runner.moe_runner", MoERunner=MoERunner)
    module(f"{LAYERS}.unquantized_fused_moe_method", UnquantizedFusedMoEMethod=UnquantizedFusedMoEMethod)
