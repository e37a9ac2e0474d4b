#!/usr/bin/env python3
"""Runs DeepEP's own tests against tokenferry.compat.deep_ep, on CPU tensors.

    tools/run_deep_ep_tests.py CHECKOUT TEST [arguments of the test]
    tools/run_deep_ep_tests.py DeepEP test_intranode --num-processes 2 --num-tokens 64 --hidden 512
    tools/run_deep_ep_tests.py DeepEP test_ep --num-processes 4 --num-tokens 32 --hidden 512 --skip-perf-test
    tools/run_deep_ep_tests.py --hosts 2 DeepEP test_internode --num-processes 2 --num-tokens 64 --hidden 512

CHECKOUT is a clone of deepseek-ai/DeepEP; TEST is one of tests/legacy (V1: test_intranode, test_internode,
test_low_latency) or tests/elastic (V2: test_ep, test_barrier, test_agrs, test_engram, test_pp). Needs torch and
tokenferry in the Python that runs this. --hosts N starts the test N times, as on N hosts: consecutive ranks of one are
then neighbours (FERRY_RANKS_PER_HOST).

DeepEP's references and unbalanced scores (deep_ep/utils/refs.py, gate.py) are taken from CHECKOUT. All stays as it is
but for these substitutions, since there is no GPU:
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

SUBSTITUTIONS = [
    (r"device='cuda'", "device='cpu'"),
    (r"all_gather_into_tensor\(all_topk_idx,", "all_gather_into_tensor(all_topk_idx.view(-1, num_topk),"),  # gloo's shape
    (r"all_gather_into_tensor\(global_storage, local_storage, group\)",  # gloo has no fp8
     "all_gather_into_tensor(global_storage.view(torch.uint8), local_storage.view(torch.uint8), group)"),
    (r"global_storage\[indices", "global_storage.view(torch.uint8)[indices"),  # torch's CPU has no fp8 there
    (r"assert torch\.equal\(ref_data, data\)", "assert torch.equal(ref_data, data.view(torch.uint8))"),
    (r"all_to_all_single\(recv_x, send_x,", "all_to_all_single(recv_x.view(torch.uint8), send_x.view(torch.uint8),"),  # as well
    (r"num_local_ranks == 8( and num_ranks > 8)?", "num_local_ranks > 0"),  # there are not always so many cores
    (r"range\(4, 45, 4\)|range\(4, 33, 4\)", "(4,)"),  # chunk sizes to choose from
    (r"torch\.cuda\.Event\(enable_timing=True\)", "WallClock()"),
    (r"\(8192, 8192\)", "(64, 64)"),  # work that hides a hook's wait on a GPU
    (r"\(131072, 32768\)", "(64, 64)"),  # what flushes a GPU's cache
    (r"\(32, 64, 2048\)", "(4, 8, 64)"),  # as much as keeps a GPU busy
    (r"torch\.cuda\._sleep\(", "float("),
    (r"torch\.cuda\.synchronize\(\)", "()"),
    (r"torch\.cuda\.get_device_properties\('cuda'\)\.multi_processor_count", "1"),
]
__doc__ += "".join(f"    {pattern}  ->  {text}\n" for pattern, text in SUBSTITUTIONS)

WALL_CLOCK = """class WallClock:
    def record(self):
        self.at = __import__("time").perf_counter()

    def elapsed_time(self, end):
        return (end.at - self.at) * 1e3


"""

SHIM = """import importlib.util, pathlib, sys
import tokenferry.compat
del sys.modules["deep_ep"]
tokenferry.compat.enable("deep_ep")
for name in ("refs", "gate"):
    full = "deep_ep.utils." + name
    spec = importlib.util.spec_from_file_location(full, pathlib.Path(__file__).parent / (name + ".of_deep_ep.py"))
    module = sys.modules[full] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
"""


def substituted(path):
    text = path.read_text()
    for pattern, replacement in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    return text


def run(folder, test, arguments, hosts):
    """The greatest status of the test on `hosts` hosts."""
    command = [sys.executable, folder / f"{test}.py", *arguments]
    if hosts == 1:
        return subprocess.run(command).returncode
    if "--num-processes" not in arguments:
        sys.exit("--hosts needs --num-processes, of each host")
    each = arguments[arguments.index("--num-processes") + 1]
    started = [
        subprocess.Popen(command, env=os.environ | {"WORLD_SIZE": str(hosts), "RANK": str(host), "FERRY_RANKS_PER_HOST": each})
        for host in range(hosts)
    ]
    return max(abs(process.wait()) for process in started)


def main():
    arguments, hosts = sys.argv[1:], 1
    if arguments[:1] == ["--hosts"]:
        hosts, arguments = int(arguments[1]), arguments[2:]
    if len(arguments) < 2:
        sys.exit(__doc__)
    checkout, test = pathlib.Path(arguments[0]), arguments[1]
    files = {file.stem: file for kind in ("legacy", "elastic") for file in (checkout / "tests" / kind).glob("test_*.py")}
    if test not in files:
        sys.exit(f"{checkout} has no {test}; it has {', '.join(sorted(files))}")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for stem, file in files.items():
            (folder / f"{stem}.py").write_text(WALL_CLOCK + substituted(file))
        for module in ("refs", "gate"):
            (folder / f"{module}.of_deep_ep.py").write_text(substituted(checkout / "deep_ep" / "utils" / f"{module}.py"))
        (folder / "deep_ep.py").write_text(SHIM)
        sys.exit(run(folder, test, arguments[2:], hosts))


main()
