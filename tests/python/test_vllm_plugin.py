"""tokenferry-vllm against what vLLM's classes promise; the real vLLM is tried by tests/vllm/greedy.py."""

import inspect
import json
import logging
import pathlib
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import numpy as np
import pytest
import ranks

HERE = pathlib.Path(__file__).resolve().parent
PLUGIN = HERE.parents[1] / "bindings/vllm"
sys.path.insert(0, str(PLUGIN))

import vllm_stand_in as vllm  # noqa: E402

CONTRACT = json.loads((HERE / "vllm_contract.json").read_text())["names"]
H, K = 32, 2


class DenseExperts(vllm.FusedMoEExpertsModular):
    """Expert e makes x * scale[e]; refuses what vLLM's CPU kernels read wrongly: ids that are not local."""

    def apply(self, output, hidden_states, w1, topk_weights, topk_ids, apply_router_weight_on_input, **others):
        assert set(others) == set(parameters("FusedMoEExpertsModular.apply")) - {
            "self", "output", "hidden_states", "w1", "topk_weights", "topk_ids", "apply_router_weight_on_input"}
        assert len(hidden_states) > 0 and topk_ids.shape == topk_weights.shape == (len(hidden_states), 1)
        assert topk_ids.min() >= 0 and topk_ids.max() < len(w1)
        weights = 1 if apply_router_weight_on_input else topk_weights
        output[:] = hidden_states * w1[topk_ids[:, 0], None] * weights


def parameters(name):
    return next(found for full, found in CONTRACT.items() if full.endswith(f":{name}"))


@pytest.fixture
def plugin():
    """The plug-in, registered with the stand-in."""
    own = vllm.MoERunner._select_forward
    vllm.install()
    import tokenferry_vllm

    tokenferry_vllm.register()
    from tokenferry_vllm import layers

    yield layers
    vllm.MoERunner._select_forward = own
    vllm.op_registry_oot.clear()
    for name in [name for name in sys.modules if name.split(".")[0] in ("vllm", "tokenferry_vllm")]:
        del sys.modules[name]
    if not hasattr(sys.modules.get("torch"), "__version__"):
        sys.modules.pop("torch", None)


def test_the_entry_point_is_there():
    with open(PLUGIN / "pyproject.toml", "rb") as file:
        points = tomllib.load(file)["project"]["entry-points"]
    module, function = points["vllm.general_plugins"]["tokenferry"].split(":")
    code = f"import {module}; assert callable({module}.{function})"  # and importing it needs no vLLM
    subprocess.run([sys.executable, "-c", code], check=True, cwd=PLUGIN, timeout=60)


@pytest.mark.parametrize("kind, name, base", [
    ("ExchangingExperts", "apply", "FusedMoEExpertsModular"),
    ("ExchangingExperts", "process_weights_after_loading", "FusedMoEExperts"),
    ("NothingAround", "finalize", "MoEPrepareAndFinalizeNoDPEPModular"),
    ("NothingAround", "prepare", "MoEPrepareAndFinalizeNoDPEPModular"),
    ("NothingAround", "post_init_setup", "FusedMoEPrepareAndFinalize"),
    ("NothingAround", "topk_indices_dtype", "FusedMoEPrepareAndFinalize"),
    ("NothingAround", "output_is_reduced", "FusedMoEPrepareAndFinalize"),
    ("NothingAround", "supports_deferred_moe_finalize", "FusedMoEPrepareAndFinalize"),
    ("ExchangingMethod", "__init__", "UnquantizedFusedMoEMethod"),
    ("ExchangingMethod", "_init_moe_kernel", "UnquantizedFusedMoEMethod"),
    ("MoERunner", "_select_forward", "MoERunner"),
])
def test_parameters_are_those_of_vllm(plugin, kind, name, base):
    own = inspect.signature(getattr(getattr(plugin, kind), name))
    assert list(own.parameters) == parameters(f"{base}.{name}")


def test_what_configs_are_asked_for_is_in_vllms():
    moe = vllm.config()
    assert set(vars(moe.moe_parallel_config)) - {"is_sequence_parallel"} <= set(parameters("FusedMoEParallelConfig"))
    assert set(vars(moe)) <= set(parameters("FusedMoEConfig"))


def test_registering_again_changes_nothing(plugin):
    import tokenferry_vllm

    forward = vllm.MoERunner._select_forward
    tokenferry_vllm.register()
    assert vllm.MoERunner._select_forward is forward
    assert vllm.op_registry_oot == {"UnquantizedFusedMoEMethod": plugin.ExchangingMethod}


def test_another_plug_in_on_the_same_layers_is_refused(plugin):
    vllm.op_registry_oot["UnquantizedFusedMoEMethod"] = vllm.CustomOp
    with pytest.raises(NotImplementedError, match="vllm_stand_in.CustomOp replaces UnquantizedFusedMoEMethod"):
        plugin.register()


@pytest.mark.parametrize("version", ["0.33.0", "0.31.1+cpu", "dev"])
def test_other_versions_are_refused_by_name(plugin, version):
    vllm.install(version)
    import tokenferry_vllm

    with pytest.raises(RuntimeError) as refused:
        tokenferry_vllm.register()
    assert version in str(refused.value) and "0.32.0" in str(refused.value) and "\n" not in str(refused.value)


def test_nothing_happens_where_vllm_has_no_cpu():
    vllm.install("0.32.0+cu130", is_cpu=False)
    import tokenferry_vllm

    tokenferry_vllm.register()
    assert not vllm.op_registry_oot


@pytest.mark.parametrize("change, word", [
    (dict(enable_eplb=True), "--enable-eplb"),
    (dict(num_experts=8), "--enable-eplb"),
    (dict(all2all_backend="deepep_v2"), "deepep_v2"),
    (dict(pcp_size=2), "--prefill-context-parallel-size"),
    (dict(is_lora_enabled=True), "LoRA"),
])
def test_what_would_be_wrong_is_refused(plugin, change, word):
    plugin.ExchangingMethod(vllm.config(ep_size=1, **change))  # without expert parallelism it is vLLM's affair
    with pytest.raises(NotImplementedError, match=word):
        plugin.ExchangingMethod(vllm.config(ep_size=2, **change))


def test_quantised_experts_are_refused(plugin):
    class Fp8MoEMethod:
        pass

    routed = SimpleNamespace(quant_method=Fp8MoEMethod())
    assert vllm.MoERunner(vllm.config(), routed)._forward_entry == "vLLM's own"
    with pytest.raises(NotImplementedError, match="Fp8MoEMethod"):
        vllm.MoERunner(vllm.config(ep_size=2), routed)


def test_experts_out_of_order_are_refused(plugin):
    method = plugin.ExchangingMethod(vllm.config(ep_size=2))
    for expert_map in ([0, -1, 1, -1, 2, -1], [0, 2, 1, -1, -1, -1], None):
        with pytest.raises(NotImplementedError):
            method._init_moe_kernel(SimpleNamespace(expert_map=expert_map))


def test_torch_compile_gets_one_operation(plugin):
    routed = SimpleNamespace(quant_method=plugin.ExchangingMethod(vllm.config(ep_size=2)))
    for shared, name in [(None, "moe_forward"), ("some", "moe_forward_shared")]:
        chosen = vllm.MoERunner(vllm.config(ep_size=2), routed, shared)._forward_entry
        assert name in str(chosen)


def test_linear_placement_is_vllms():
    sys.modules.pop("tokenferry_vllm.exchange", None)
    from tokenferry_vllm.exchange import linear_slots, local_experts

    assert linear_slots(6, 4) == [0, 1, 2, 3, 4, -1, 5, -1]
    assert linear_slots(2, 3) == [0, 1, -1]
    assert [list(local_experts(7, 3, r)) for r in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]


def layer_of(moe, on_input):
    """A RoutedExperts after loading: this rank's experts, and vLLM's map to them."""
    from tokenferry_vllm.exchange import local_experts

    parallel = moe.moe_parallel_config
    held = local_experts(moe.num_experts, parallel.ep_size, parallel.ep_rank)
    expert_map = np.full(moe.num_experts, -1)
    expert_map[held] = range(len(held))
    return SimpleNamespace(expert_map=expert_map, w13_weight=np.array(held) + 2.0, w2_weight=None, activation="silu",
                           global_num_experts=moe.num_experts, apply_router_weight_on_input=on_input)


def tokens_of(who, count, experts, topk):
    rng = np.random.default_rng(who)
    x = rng.integers(-8, 8, (count, H)).astype(np.float32)
    ids = np.array([rng.permutation(experts)[:topk] for _ in range(count)], np.int32).reshape(count, topk)
    ids[::3, -1] = -1
    return x, ids, rng.integers(1, 4, (count, topk)).astype(np.float32)


def expected(x, ids, weights):
    scales = np.where(ids >= 0, ids + 2, 0) * weights
    return x * scales.sum(1, keepdims=True)


def run_layer(comm, tp, sp, experts, on_input, counts, dtype, forms):
    """One rank of vLLM: groups of tp ranks have the same tokens, unless the model cuts them (sp)."""
    ep = SimpleNamespace(cpu_group=comm)
    vllm.install(groups=dict(ep=ep, tp=SimpleNamespace(world_size=tp, rank_in_group=comm.rank % tp)))
    vllm.UnquantizedFusedMoEMethod.cpu_experts = DenseExperts
    from tokenferry_vllm import exchange, layers

    exchange.tokenferry.from_process_group = lambda group, **_: group
    topk = 1 if on_input else K
    moe = vllm.config(ep_rank=comm.rank, ep_size=comm.size, sp_size=tp if sp else 1, num_experts=experts,
                      num_logical_experts=experts, experts_per_token=topk, max_num_tokens=8, in_dtype=dtype)
    method = layers.ExchangingMethod(moe)
    made = []
    for _ in range(2):  # two layers, one exchange
        layer = layer_of(moe, on_input)
        method._init_moe_kernel(layer)
        made.append(method.moe_kernel.fused_experts.exchange)
    assert made[0] is made[1]
    assert not method.moe_kernel.prepare_finalize.output_is_reduced()
    for step, counts_of_step in enumerate(counts):
        who = comm.rank if sp else comm.rank // tp
        count = counts_of_step[who % len(counts_of_step)]
        x, ids, weights = tokens_of(100 * step + who, count, experts, topk)
        out = np.full(x.shape, 7, forms)  # what was there must not stay
        method.moe_kernel.apply(layer, x.astype(forms), weights, ids, out)
        whole = expected(x, ids, weights)
        mine = np.zeros(count, bool)
        mine[slice(None) if sp else slice(count * (comm.rank % tp) // tp, count * (comm.rank % tp + 1) // tp)] = True
        np.testing.assert_array_equal(out[mine], whole[mine].astype(forms))
        assert (out[~mine] == 0).all()
    return True


# Tokens of each step, of each group of ranks in turn: none on one of them, none on any, more than max_tokens.
COUNTS = [[5, 8, 3, 1], [0, 4], [0], [1], [21, 0, 2]]


@pytest.mark.parametrize("size, tp, sp, experts", [
    (2, 1, False, 6), (3, 1, False, 7), (4, 1, False, 2), (2, 2, False, 6), (4, 2, False, 6), (4, 4, False, 5),
    (4, 2, True, 6)])
def test_a_layer_gives_what_a_dense_one_does(size, tp, sp, experts):
    ranks.in_processes(size, run_layer, tp, sp, experts, False, COUNTS, "float32", np.float32)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_rows(dtype):
    if dtype == "bfloat16":
        forms = pytest.importorskip("ml_dtypes").bfloat16
    else:
        forms = np.float16
    ranks.in_processes(2, run_layer, 1, False, 6, False, COUNTS, dtype, forms)


def test_weights_on_the_input_of_experts():
    ranks.in_processes(2, run_layer, 2, False, 6, True, COUNTS, "float32", np.float32)


def die_in_the_experts(comm):
    from tokenferry_vllm.exchange import Ranks

    exchange = Ranks(comm).exchange(num_experts=4, topk=1, hidden=H, dtype="float32", max_tokens=4)
    x, ids = np.ones((2, H), np.float32), np.array([[0], [3]], np.int32)

    def kernel(rows, local_ids, weights, out):
        if comm.rank == 1:
            import os

            os._exit(3)
        out[:] = rows

    try:
        exchange.forward(x, ids, np.ones((2, 1), np.float32), kernel, np.empty_like(x))
    except exchange_errors() as error:
        return str(error)


def exchange_errors():
    import tokenferry

    return tokenferry.TransportError


def test_a_rank_that_dies_is_named():
    with ranks.Processes(2, die_in_the_experts) as processes:
        ((good, text),) = processes.collect(1).values()
    assert good and "rank 1" in text and "\n" not in text, text


def test_behind_an_error_of_vllms_own_stands_who_is_gone(plugin):
    """vLLM's log of an exception that is not ours: gloo's names no rank."""
    import tokenferry
    from tokenferry_vllm.exchange import Ranks

    said = []
    plugin.logger = SimpleNamespace(error=lambda text, *values: said.append(text % values))
    first, second = tokenferry.local(2)
    plugin._ranks[1] = Ranks(first)

    def log(error):
        record = logging.LogRecord("vllm", logging.ERROR, __file__, 1, "it failed", (), (type(error), error, None))
        assert plugin.NAMES_THE_GONE.filter(record)

    log(RuntimeError("no memory"))
    assert said == []  # nobody is
    second.abort("it is tired")
    log(RuntimeError("Connection closed by peer"))
    assert len(said) == 1 and "rank 1" in said[0] and "it is tired" in said[0], said
    log(tokenferry.TransportError("rank 1 died"))
    assert len(said) == 1  # it says so itself


def leave_between_layers(comm):
    from tokenferry_vllm.exchange import Ranks

    if comm.rank == 1:
        import os

        os._exit(3)
    return str(Ranks(comm).who_is_gone(30))


def test_a_rank_that_dies_between_layers_is_named():
    with ranks.Processes(2, leave_between_layers) as processes:
        ((good, text),) = processes.collect(1).values()
    assert good and "rank 1" in text, text
