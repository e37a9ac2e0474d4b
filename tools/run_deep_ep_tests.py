#!/usr/bin/env python3
"""Runs DeepEP's own V1 tests against tokenferry.compat.deep_ep, on CPU tensors.

    tools/run_deep_ep_tests.py CHECKOUT TEST [arguments of the test]
    tools/run_deep_ep_tests.py DeepEP test_intranode --num-processes 2 --num-tokens 64 --hidden 512

CHECKOUT is a clone of deepseek-ai/DeepEP; TEST is test_intranode or test_low_latency. Needs torch and tokenferry in
the Python that runs this. The tests stay as they are but for these substitutions, since there is no GPU:
"""

import pathlib
import re
import subprocess
import sys
import tempfile

SUBSTITUTIONS = [
    (r"device='cuda'", "device='cpu'"),
    (r"all_gather_into_tensor\(all_topk_idx,", "all_gather_into_tensor(all_topk_idx.view(-1, num_topk),"),  # gloo's shape
    (r"\(8192, 8192\)", "(64, 64)"),  # work that hides a hook's wait on a GPU
]
__doc__ += "".join(f"    {pattern}  ->  {text}\n" for pattern, text in SUBSTITUTIONS)

SHIM = """import sys
import tokenferry.compat
del sys.modules["deep_ep"]
tokenferry.compat.enable("deep_ep")
"""


def main():
    if len(sys.argv) < 3 or sys.argv[2] not in ("test_intranode", "test_low_latency"):
        sys.exit(__doc__)
    tests = pathlib.Path(sys.argv[1]) / "tests" / "legacy"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for test in ("test_intranode", "test_low_latency"):
            text = (tests / f"{test}.py").read_text()
            for pattern, replacement in SUBSTITUTIONS:
                text = re.sub(pattern, replacement, text)
            (folder / f"{test}.py").write_text(text)
        (folder / "deep_ep.py").write_text(SHIM)
        sys.exit(subprocess.run([sys.executable, folder / f"{sys.argv[2]}.py", *sys.argv[3:]]).returncode)


main()
