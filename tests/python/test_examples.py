"""The examples run as their first lines say."""

import os
import pathlib
import subprocess
import sys

import pytest
from frameworks import torch
from test_comm import free_port

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples" / "python"


def test_generation():
    done = subprocess.run([sys.executable, EXAMPLES / "generate.py"], cwd=EXAMPLES.parents[1], text=True,
                          capture_output=True, timeout=60)
    assert done.returncode == 0 and "12 + 34 = 46" in done.stdout, done.stderr


@pytest.mark.skipif(torch is None, reason="torch is not installed: the example with its tensors is not run")
def test_layer():
    port = str(free_port())
    running = [subprocess.Popen([sys.executable, EXAMPLES / "moe_layer.py"], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                env=os.environ | dict(RANK=str(r), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1",
                                                      MASTER_PORT=port, OMP_NUM_THREADS="1"))
               for r in range(2)]
    for rank, process in enumerate(running):
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0 and f"rank {rank}: ({32 - rank}, 256)" in out, error
        assert float(out.split()[-1]) < 0.1


def test_benchmark_runs():
    bench = EXAMPLES.parents[1] / "bench" / "python_exchange.py"
    done = subprocess.run([sys.executable, bench, "--tokens", "1", "--rounds", "1"], text=True, capture_output=True,
                          timeout=120, env=os.environ | dict(OMP_NUM_THREADS="1"))
    for way in ("c++", "bound", "forward", "fresh"):
        assert f"1 tokens  {way} " in done.stdout, done.stderr
