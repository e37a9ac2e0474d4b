"""The exchange over libfabric and MPI, from Python; and that both are looked for only when they are asked for."""

import functools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import ranks
import tokenferry
from test_comm import FROM_ENV, dies, free_port
from test_exchange import PLAIN, expected, run_experts, tokens_of

JOIN = """
import tokenferry
try:
    tokenferry.join(tokenferry.LocalStore(), 0, 1, transport={transport!r}).close()
except tokenferry.ConfigError as error:
    print(error)
"""


@functools.cache
def why_not(transport):
    """"" where this machine has it."""
    done = subprocess.run([sys.executable, "-c", JOIN.format(transport=transport)], text=True, capture_output=True,
                          timeout=ranks.TIMEOUT)
    return done.stdout if done.returncode == 0 else done.stderr


@pytest.fixture
def fabric():
    if "is not available" in why_not("fabric"):
        pytest.skip(why_not("fabric"))


def four_phases_and_a_layer(comm, hosts):
    assert comm.transport == "fabric" and comm.host_of(comm.size - 1) == hosts - 1
    a2a = tokenferry.AllToAll(comm, **PLAIN)
    x, ids, weights = tokens_of(comm.rank, [0, 5, 1][comm.rank])
    first = comm.rank * a2a.slots_per_rank
    for _ in range(3):
        a2a.dispatch_send(x, ids, weights)
        rows = a2a.dispatch_recv()
        run_experts(rows, first)
        a2a.combine_send()
        np.testing.assert_array_equal(a2a.combine_recv(), expected(x, ids, weights))
        y = a2a.moe_forward_from_topk(x, ids, weights, lambda rows: run_experts(rows, first))
        np.testing.assert_array_equal(y, expected(x, ids, weights))


@pytest.mark.parametrize("provider", ["tcp", "shm"])
@pytest.mark.parametrize("hosts", [1, 3])
def test_over_libfabric(fabric, provider, hosts):
    """With 3 hosts every rank counts as a host of its own, so that rows are pushed."""
    ranks.in_processes(3, four_phases_and_a_layer, hosts, transport="fabric", fabric_provider=provider,
                       ranks_per_host=3 // hosts)


@pytest.mark.parametrize("on_dead_rank", ["fail", "mask"])
def test_a_killed_rank_over_libfabric(fabric, on_dead_rank):
    with ranks.Processes(3, dies, 1, on_dead_rank, transport="fabric", fabric_provider="tcp") as processes:
        found = processes.collect(2)
    for good, result in found.values():
        assert good, result


def test_over_mpi(tmp_path):
    """Each rank says what it has seen in a file of its own: mpirun mixes what they print."""
    mpirun = shutil.which("mpirun")
    if mpirun is None:
        pytest.skip("mpirun is not installed: ranks of MPI are not tested")
    if "switched off" in why_not("mpi") or "was not found" in why_not("mpi"):
        pytest.skip(why_not("mpi"))
    of_open_mpi = ["--oversubscribe", "--mca", "btl", "self,vader"]
    about = subprocess.run([mpirun, "--version"], text=True, capture_output=True).stdout
    script = FROM_ENV.format(transport="mpi")
    said = "print(comm.rank, comm.size, comm.transport)"
    assert said in script
    script = script.replace(said, f"open(f'{tmp_path}/{{comm.rank}}', 'w').write(f'{{comm.size}} {{comm.transport}}')")
    done = subprocess.run(
        [mpirun, *(of_open_mpi if "Open" in about else []), "-n", "3", sys.executable, "-c", script],
        text=True, capture_output=True, timeout=ranks.TIMEOUT,
        env=os.environ | dict(OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", MASTER_ADDR="127.0.0.1",
                              MASTER_PORT=str(free_port())))
    assert done.returncode == 0, done.stderr
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {str(r): "3 mpi" for r in range(3)}


MAPS = """
import sys, tokenferry
def loaded():
    return [n for n in ("libfabric", "libpsm", "libmpi") if n in open("/proc/self/maps").read()]
print(loaded())
"""


def test_neither_is_loaded_before_it_is_asked_for():
    done = subprocess.run([sys.executable, "-c", MAPS], text=True, capture_output=True, timeout=ranks.TIMEOUT)
    assert done.stdout == "[]\n", done.stderr


HANDLERS = """
import ctypes, signal, tokenferry
kept = {}
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGABRT):
    kept[number] = ctypes.create_string_buffer(512)
    ctypes.CDLL(None).sigaction(int(number), None, kept[number])
tokenferry.join(tokenferry.LocalStore(), 0, 1, transport="fabric").close()
for number, before in kept.items():
    now = ctypes.create_string_buffer(512)
    ctypes.CDLL(None).sigaction(int(number), None, now)
    assert now.raw[:8] == before.raw[:8], number  # the handler
assert "libfabric" in open("/proc/self/maps").read()
print("as before")
"""


def test_loading_libfabric_keeps_signal_handlers(fabric):
    done = subprocess.run([sys.executable, "-c", HANDLERS], text=True, capture_output=True, timeout=ranks.TIMEOUT)
    assert done.stdout == "as before\n", done.stderr


def test_without_libfabric_the_reason_is_one_line(tmp_path):
    """A file that is no library hides the one that may be on this machine."""
    (tmp_path / "libfabric.so.1").write_text("")
    done = subprocess.run([sys.executable, "-c", JOIN.format(transport="fabric")], text=True, capture_output=True,
                          timeout=ranks.TIMEOUT, env=os.environ | dict(LD_LIBRARY_PATH=str(tmp_path)))
    if "when this was built" in done.stdout:
        pytest.skip(done.stdout)
    assert done.stdout.startswith("transport fabric is not available: libfabric is not on this machine") and \
        done.stdout.count("\n") == 1, (done.stdout, done.stderr)
