#!/usr/bin/env python3
"""Compares tests/python/vllm_contract.json, the names and parameters of vLLM that tokenferry-vllm relies on, with an
installed vLLM.

    build/venv-vllm/bin/python tests/vllm/contract.py [--write]
"""

import dataclasses
import importlib
import inspect
import json
import pathlib
import sys

FILE = pathlib.Path(__file__).resolve().parents[1] / "python/vllm_contract.json"
LAYERS = "vllm.model_executor.layers.fused_moe"
NAMES = {
    f"{LAYERS}.modular_kernel": [
        "FusedMoEExpertsModular.apply", "FusedMoEExperts.process_weights_after_loading", "FusedMoEKernel.__init__",
        "FusedMoEPrepareAndFinalize.post_init_setup", "FusedMoEPrepareAndFinalize.topk_indices_dtype",
        "FusedMoEPrepareAndFinalize.output_is_reduced", "FusedMoEPrepareAndFinalize.supports_deferred_moe_finalize"],
    f"{LAYERS}.prepare_finalize.no_dp_ep": [
        "MoEPrepareAndFinalizeNoDPEPModular.prepare", "MoEPrepareAndFinalizeNoDPEPModular.finalize"],
    f"{LAYERS}.unquantized_fused_moe_method": [
        "UnquantizedFusedMoEMethod.__init__", "UnquantizedFusedMoEMethod._init_moe_kernel"],
    f"{LAYERS}.runner.moe_runner": ["MoERunner._select_forward"],
    f"{LAYERS}.config": ["FusedMoEConfig", "FusedMoEParallelConfig"],
    "vllm.model_executor.custom_op": ["CustomOp.register_oot"],
    "vllm.distributed.parallel_state": ["get_ep_group", "get_tp_group"],
}


def found():
    import vllm

    names = {}
    for module, wanted in NAMES.items():
        for name in wanted:
            thing = importlib.import_module(module)
            for part in name.split("."):
                thing = getattr(thing, part)
            names[f"{module}:{name}"] = (
                [field.name for field in dataclasses.fields(thing)] if dataclasses.is_dataclass(thing)
                else list(inspect.signature(thing).parameters))
    return dict(version=vllm.__version__.split("+")[0], names=names)


def main():
    here = found()
    if "--write" in sys.argv:
        FILE.write_text(json.dumps(here, indent=1) + "\n")
    written = json.loads(FILE.read_text())
    for name, parameters in here["names"].items():
        if written["names"].get(name) != parameters:
            print(f"{name}: {parameters}, written down is {written['names'].get(name)}")
    print(f"vLLM {here['version']}, written down is {written['version']}")
    return int(here != written)


if __name__ == "__main__":
    sys.exit(main())
