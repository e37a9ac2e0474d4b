"""vLLM 0.32's unquantised MoE layers with experts that own the exchange.

The method that vLLM makes for a layer (UnquantizedFusedMoEMethod) is replaced by its documented way,
register_oot: with expert parallelism it puts an exchange around the CPU kernels that vLLM has chosen. One
method is patched, MoERunner._select_forward: torch.compile would trace into an exchange, which it cannot,
and it is where every layer comes by, also those whose experts are quantised.
"""

import logging

import torch
import vllm.model_executor.layers.fused_moe.modular_kernel as mk
from tokenferry import TransportError
from vllm.distributed.parallel_state import get_ep_group, get_tp_group
from vllm.logger import init_logger
from vllm.model_executor.custom_op import op_registry_oot
from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import (
    MoEPrepareAndFinalizeNoDPEPModular,
)
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from . import refusals
from .exchange import Ranks, local_experts

logger = init_logger("vllm.tokenferry")

_ranks = {}  # of this process, by how many hold the same tokens

#: Of vLLM: what logs the exception that ends a worker, or an engine that is its own worker.
SAY_WHAT_FAILED = ("vllm.v1.executor.multiproc_executor", "vllm.v1.engine.core")


class NamesTheGone(logging.Filter):
    """Before vLLM logs what failed: which rank is gone, where one is. Between two MoE layers ranks wait in gloo's
    collectives, whose error names an address at best."""

    def filter(self, record):
        if record.exc_info and not isinstance(record.exc_info[1], TransportError):
            for ranks in _ranks.values():
                gone = ranks.who_is_gone()
                if gone is not None:
                    logger.error("TransportError: %s", gone)
        return True


NAMES_THE_GONE = NamesTheGone()


def exchange_of(moe):
    """The exchange for layers of this FusedMoEConfig. Collective where their shape is new."""
    parallel = moe.moe_parallel_config
    tp = get_tp_group()
    # With sequence parallelism the model has cut the tokens itself, and gathers the results.
    copies = 1 if parallel.is_sequence_parallel else tp.world_size
    refusals.check_copies(parallel.ep_rank, tp.rank_in_group, tp.world_size)
    if copies not in _ranks:
        ranks = _ranks[copies] = Ranks.of_process_group(get_ep_group().cpu_group, copies)
        for name in SAY_WHAT_FAILED:
            logging.getLogger(name).addFilter(NAMES_THE_GONE)
        comm = ranks.comm
        logger.info(
            "Tokenferry carries tokens between %d ranks over %s; groups of %d hold the same ones.",
            comm.size, comm.transport, copies,
        )
    return _ranks[copies].exchange(
        num_experts=moe.num_experts, topk=moe.experts_per_token, hidden=moe.hidden_dim,
        dtype=str(moe.in_dtype).removeprefix("torch."), max_tokens=moe.max_num_tokens,
    )


class ExchangingExperts:
    """Before a class of vLLM's CPU experts: its apply() gets the rows of all ranks for local experts."""

    exchange = layer = None

    def join(self, exchange, layer):
        self.exchange, self.layer = exchange, layer

    def process_weights_after_loading(self, layer):
        super().process_weights_after_loading(layer)
        refusals.check_kernel(self)

    def apply(
        self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts,
        expert_map, a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta,
        apply_router_weight_on_input,
    ):
        vllms = super().apply

        def kernel(rows, local_ids, weights, results):
            vllms(
                output=results, hidden_states=rows, w1=w1, w2=w2, topk_weights=weights[:, None],
                topk_ids=local_ids[:, None], activation=activation, global_num_experts=len(w1),
                expert_map=None, a1q_scale=a1q_scale, a2_scale=a2_scale, workspace13=workspace13,
                workspace2=workspace2, expert_tokens_meta=None,
                apply_router_weight_on_input=apply_router_weight_on_input,
            )

        self.exchange.forward(hidden_states, topk_ids, topk_weights, kernel, output)

    def apply_to_nothing(self, output, topk_weights, topk_ids):
        """A rank without tokens: the others need its experts all the same."""
        layer = self.layer
        self.apply(
            output=output, hidden_states=output, w1=layer.w13_weight, w2=layer.w2_weight,
            topk_weights=topk_weights, topk_ids=topk_ids, activation=layer.activation,
            global_num_experts=layer.global_num_experts, expert_map=None, a1q_scale=None, a2_scale=None,
            workspace13=None, workspace2=None, expert_tokens_meta=None,
            apply_router_weight_on_input=layer.apply_router_weight_on_input,
        )


class NothingAround(MoEPrepareAndFinalizeNoDPEPModular):
    """The steps before and after experts: those of a single rank, since experts exchange by themselves.

    output_is_reduced() stays False: each of several ranks with the same tokens has its part of the
    results, and vLLM adds them up.
    """

    experts = None

    def post_init_setup(self, fused_experts):
        self.experts = fused_experts

    def topk_indices_dtype(self):
        return torch.int32

    def supports_deferred_moe_finalize(self):
        return False  # sums are complete when the experts return

    def finalize(
        self, output, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input,
        weight_and_reduce_impl,
    ):
        if len(output) == 0:  # vLLM does not call experts then
            self.experts.apply_to_nothing(output, topk_weights, topk_ids)
        super().finalize(
            output, fused_expert_output, topk_weights, topk_ids, apply_router_weight_on_input,
            weight_and_reduce_impl,
        )


class ExchangingMethod(UnquantizedFusedMoEMethod):
    """Without expert parallelism, vLLM's own."""

    def __init__(self, moe):
        super().__init__(moe)
        if moe.moe_parallel_config.use_ep:
            refusals.check_config(moe)
            vllms = self.experts_cls
            self.experts_cls = type(f"Exchanging{vllms.__name__}", (ExchangingExperts, vllms), {})

    def _init_moe_kernel(self, layer):
        super()._init_moe_kernel(layer)
        parallel = self.moe.moe_parallel_config
        if not parallel.use_ep:
            return
        held = local_experts(self.moe.num_experts, parallel.ep_size, parallel.ep_rank)
        refusals.check_experts_map(layer.expert_map, held)
        experts = self.moe_kernel.fused_experts
        experts.join(exchange_of(self.moe), layer)
        self.moe_kernel = mk.FusedMoEKernel(NothingAround(), experts)


def _patch_select_forward():
    vllms = MoERunner._select_forward

    def _select_forward(self):
        if not self.moe_config.moe_parallel_config.use_ep:
            return vllms(self)
        refusals.check_method(self.routed_experts.quant_method, ExchangingMethod)
        ops = torch.ops.vllm
        return ops.moe_forward if self._shared_experts is None else ops.moe_forward_shared

    MoERunner._select_forward = _select_forward


def register():
    name = UnquantizedFusedMoEMethod.__name__
    present = op_registry_oot.get(name)
    if present is ExchangingMethod:
        return
    if present is not None:
        refusals.refuse(
            f"{present.__module__}.{present.__qualname__} replaces {name} already",
            "load one of the two plug-ins, with VLLM_PLUGINS",
        )
    UnquantizedFusedMoEMethod.register_oot(ExchangingMethod)
    _patch_select_forward()
