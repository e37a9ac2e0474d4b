#!/usr/bin/env python3
"""Runs other systems' own tests against tokenferry.compat, on CPU tensors.

    tools/run_their_tests.py [--hosts N] SYSTEM CHECKOUT TEST [arguments of the test]
    tools/run_their_tests.py deep_ep DeepEP test_intranode --num-processes 2 --num-tokens 64 --hidden 512
    tools/run_their_tests.py deep_ep DeepEP test_ep --num-processes 4 --num-tokens 32 --hidden 512 --skip-perf-test
    tools/run_their_tests.py --hosts 2 deep_ep DeepEP test_internode --num-processes 2 --num-tokens 64 --hidden 512
    tools/run_their_tests.py pplx_kernels pplx-kernels test_all_to_all -x
    tools/run_their_tests.py mooncake Mooncake test_mooncake_ep
    tools/run_their_tests.py mooncake Mooncake test_ep_grid

SYSTEM and its CHECKOUT: deep_ep of deepseek-ai/DeepEP, pplx_kernels of perplexityai/pplx-kernels, mooncake of
kvcache-ai/Mooncake. TEST without any other word says which there are by its error. Needs torch and tokenferry in the
Python that runs this, and pytest for pplx_kernels. --hosts N starts the test N times, as on N hosts: consecutive ranks
of one are then neighbours (FERRY_RANKS_PER_HOST).

DeepEP's references and unbalanced scores (deep_ep/utils/refs.py, gate.py) are taken from CHECKOUT. Since there is no GPU, the tests
of pplx_kernels get a Device and an nvshmem that do nothing, those of Mooncake a mooncake.pg that does nothing (it chooses
network cards) and timing by wall clocks. Tests that use a fixed port (29500) run one after the other. All else
stays as it is but for these substitutions:
"""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import tempfile

WALL_CLOCK = """class WallClock:
    def record(self):
        self.at = __import__("time").perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


"""

# What stands in the place of `import NAME`: ours, and the modules of theirs that tests need beside it.
SHIM = """import importlib.util, pathlib, sys, types
import tokenferry.compat
del sys.modules["{name}"]
tokenferry.compat.enable("{name}")
"""

OF_DEEP_EP = """for name in ("refs", "gate"):
    full = "deep_ep.utils." + name
    spec = importlib.util.spec_from_file_location(full, pathlib.Path(__file__).parent / (name + ".of_deep_ep.py"))
    module = sys.modules[full] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
"""

# NVIDIA's names, of which pplx_kernels' tests need no more than that they are there.
NO_DEVICE = """import types
Device = lambda number: types.SimpleNamespace(set_current=lambda: None)
nvshmem = types.SimpleNamespace(direct=types.SimpleNamespace(init_status=lambda: 2), finalize=lambda: None)
"""

# Choosing network cards, of Mooncake's process groups.
OF_MOONCAKE = """pg = sys.modules["mooncake"].pg = sys.modules["mooncake.pg"] = types.ModuleType("mooncake.pg")
pg.set_device_filter = lambda names: None
"""

# Profilers of devices.
OUR_TIMES = "\n\nfrom tokenferry.compat.deep_ep.utils.testing import bench, bench_kineto  # noqa: E402\n"

ON_CPU = [
    (r"device='cuda'", "device='cpu'"),
    (r"torch\.cuda\.synchronize\(\)", "()"),
    (r"\(8192, 8192\)", "(64, 64)"),  # work that hides a hook's wait on a GPU
    (r"all_gather_into_tensor\(all_topk_idx, topk_idx,",  # gloo's shape
     "all_gather_into_tensor(all_topk_idx.view(-1, num_topk), topk_idx,"),
]


@dataclasses.dataclass
class System:
    """What of a checkout runs how. tests: patterns of files that lie next to each other; package: the folder that
    they lie in, where they import each other as one; references: files for the shim; added: text behind a file."""

    tests: list
    substitutions: list
    shim: str = ""
    package: str = ""
    references: list = dataclasses.field(default_factory=list)
    files: dict = dataclasses.field(default_factory=dict)
    added: dict = dataclasses.field(default_factory=dict)
    before: str = ""
    pytest: bool = False


SYSTEMS = {
    "deep_ep": System(
        tests=["tests/legacy/*.py", "tests/elastic/*.py"],
        references=["deep_ep/utils/refs.py", "deep_ep/utils/gate.py"],
        before=WALL_CLOCK,
        shim=OF_DEEP_EP,
        substitutions=ON_CPU + [
            (r"all_gather_into_tensor\(global_storage, local_storage, group\)",  # gloo has no fp8
             "all_gather_into_tensor(global_storage.view(torch.uint8), local_storage.view(torch.uint8), group)"),
            (r"global_storage\[indices", "global_storage.view(torch.uint8)[indices"),  # torch's CPU has no fp8 there
            (r"assert torch\.equal\(ref_data, data\)", "assert torch.equal(ref_data, data.view(torch.uint8))"),
            (r"all_to_all_single\(recv_x, send_x,", "all_to_all_single(recv_x.view(torch.uint8), send_x.view(torch.uint8),"),  # as well
            (r"num_local_ranks == 8( and num_ranks > 8)?", "num_local_ranks > 0"),  # there are not always so many cores
            (r"range\(4, 45, 4\)|range\(4, 33, 4\)", "(4,)"),  # chunk sizes to choose from
            (r"torch\.cuda\.Event\(enable_timing=True\)", "WallClock()"),
            (r"\(131072, 32768\)", "(64, 64)"),  # what flushes a GPU's cache
            (r"\(32, 64, 2048\)", "(4, 8, 64)"),  # as much as keeps a GPU busy
            (r"torch\.cuda\._sleep\(", "float("),
            (r"torch\.cuda\.get_device_properties\('cuda'\)\.multi_processor_count", "1"),
        ],
    ),
    "pplx_kernels": System(
        tests=["tests/*.py"],
        package="tests",
        files={"no_device.py": NO_DEVICE},
        pytest=True,
        substitutions=ON_CPU + [
            (r"import nvshmem\.core as nvshmem.*", "from no_device import nvshmem"),
            (r"from cuda\.core\.experimental import Device.*", "from no_device import Device"),
            (r"torch\.cuda\.device_count\(\)", "4"),
            (r"torch\.cuda\.current_device\(\)", "local_rank"),
            (r"torch\.cuda\.set_device\(local_rank\)", "()"),
            (r'torch\.device\("cuda", local_rank\)', 'torch.device("cpu")'),
            (r'backend="cpu:gloo,cuda:nccl"', 'backend="gloo"'),
            (r"device_id=device,", ""),
        ],
    ),
    "mooncake": System(
        tests=["mooncake-wheel/tests/test_mooncake_ep.py", "mooncake-wheel/tests/ep_test_utils.py",
               "mooncake-ep/tests/test_ep_grid.py"],
        shim=OF_MOONCAKE,
        added={"ep_test_utils.py": OUR_TIMES},
        substitutions=ON_CPU + [
            (r"backend=(['\"])mooncake\1", "backend='gloo'"),
            (r"torch\.cuda\.set_device\(\w+\)", "()"),
            (r"set_default_device\((['\"])cuda\1\)", "set_default_device('cpu')"),
            (r"torch\.cuda\.device_count\(\)", "2"),
        ],
    ),
}
__doc__ += "".join(
    f"    {name}:\n" + "".join(f"        {pattern}  ->  {text}\n" for pattern, text in system.substitutions)
    for name, system in SYSTEMS.items()
)


def substituted(system, path):
    text = path.read_text()
    for pattern, replacement in system.substitutions:
        text = re.sub(pattern, replacement, text)
    return text


def lay_out(system, name, checkout, folder):
    """Writes what runs into `folder`; the tests by name."""
    place = folder / system.package
    place.mkdir(exist_ok=True)
    tests = {}
    for pattern in system.tests:
        for file in checkout.glob(pattern):
            (place / file.name).write_text(system.before + substituted(system, file) + system.added.get(file.name, ""))
            if file.stem.startswith("test_"):
                tests[file.stem] = place / file.name
    for reference in system.references:
        file = checkout / reference
        (folder / f"{file.stem}.of_{name}.py").write_text(substituted(system, file))
    (folder / f"{name}.py").write_text(SHIM.format(name=name) + system.shim)
    for file, text in system.files.items():
        (folder / file).write_text(text)
    return tests


def run(system, folder, test, arguments, hosts):
    """The greatest status of the test on `hosts` hosts."""
    command = [sys.executable, *(["-m", "pytest"] if system.pytest else []), test, *arguments]
    if hosts == 1:
        return subprocess.run(command, cwd=folder).returncode
    if "--num-processes" not in arguments:
        sys.exit("--hosts needs --num-processes, of each host")
    each = arguments[arguments.index("--num-processes") + 1]
    started = [
        subprocess.Popen(command, cwd=folder,
                         env=os.environ | {"WORLD_SIZE": str(hosts), "RANK": str(host), "FERRY_RANKS_PER_HOST": each})
        for host in range(hosts)
    ]
    return max(abs(process.wait()) for process in started)


def main():
    arguments, hosts = sys.argv[1:], 1
    if arguments[:1] == ["--hosts"]:
        hosts, arguments = int(arguments[1]), arguments[2:]
    if len(arguments) < 3 or arguments[0] not in SYSTEMS:
        sys.exit(__doc__)
    name, checkout, test = arguments[0], pathlib.Path(arguments[1]), arguments[2]
    # Of the directory that this was started in, since tests run in another.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        str(pathlib.Path(entry).resolve()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        tests = lay_out(SYSTEMS[name], name, checkout, folder)
        if test not in tests:
            sys.exit(f"{checkout} has no {test}; it has {', '.join(sorted(tests)) or 'none of its tests'}")
        sys.exit(run(SYSTEMS[name], folder, tests[test], arguments[3:], hosts))


main()
