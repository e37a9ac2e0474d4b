"""Ranks: how they meet, that their errors reach everybody, that Ctrl-C ends a wait, and what stays behind."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import ranks
import tokenferry
from frameworks import torch

H = 32
SMALL = dict(num_experts=4, topk=2, hidden=H, max_tokens=4, dispatch_dtype="f32", combine_dtype="f32")
IDS, WEIGHTS = np.array([[0, 3]]), np.ones((1, 2), np.float32)
X = np.ones((1, H), np.float32)

FROM_ENV = """
import numpy as np, tokenferry
with tokenferry.Comm.from_env(transport="{transport}") as comm:
    a2a = tokenferry.AllToAll(comm, num_experts=4, topk=2, hidden=32, max_tokens=4, dispatch_dtype="f32", combine_dtype="f32")
    y = a2a.moe_forward_from_topk(np.full((1, 32), comm.rank + 1, np.float32), np.array([[0, 3]]), np.ones((1, 2), np.float32),
                                  lambda rows: np.multiply(rows.x, 2, out=rows.out))
    assert (y == 4 * (comm.rank + 1)).all()
    comm.barrier()
    print(comm.rank, comm.size, comm.transport)
"""


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_with_variables(script, size):
    port = str(free_port())
    running = [
        subprocess.Popen([sys.executable, "-c", script], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                         env=os.environ | dict(RANK=str(r), WORLD_SIZE=str(size), LOCAL_RANK=str(r),
                                               MASTER_ADDR="127.0.0.1", MASTER_PORT=port))
        for r in range(size)
    ]
    return [(p.wait(ranks.TIMEOUT), *p.communicate()) for p in running]


@pytest.mark.parametrize("transport", ["auto", "shm"])
def test_from_a_launchers_variables(transport):
    found = run_with_variables(FROM_ENV.format(transport=transport), 3)
    assert [(status, out) for status, out, _ in found] == [(0, f"{r} 3 shm\n") for r in range(3)], found


def test_an_unhandled_exception_of_a_rank_reaches_the_others():
    found = run_with_variables(FROM_ENV.format(transport="shm").replace(
        "    comm.barrier()", "    assert comm.rank != 1, 'this rank is unwell'\n    comm.barrier(20)"), 2)
    assert "this rank is unwell" in found[1][2]
    assert found[0][0] == 1 and "this rank is unwell" in found[0][2] and "TransportError" in found[0][2]


@pytest.mark.skipif(torch is None, reason="torch is not installed: its launcher and process groups are not tested")
@pytest.mark.parametrize("way", ["Comm.from_env()", "Comm.from_process_group()"])
def test_under_torchrun(way, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(
        "import torch, torch.distributed as dist, tokenferry\n"
        "dist.init_process_group('gloo')\n"
        f"for _ in range(2):\n    comm = tokenferry.{way}\n    comm.barrier()\n"
        "group = dist.new_group([1, 0]) if dist.get_world_size() == 2 else None\n"
        "sub = tokenferry.Comm.from_process_group(group)\n"
        "assert (sub.rank, sub.size) == (dist.get_rank(group), 2)\n"
        "sub.barrier()\nprint('fine', comm.rank)\ndist.barrier()\n"
        if "process" in way else
        "import tokenferry\n"
        f"for _ in range(2):\n    comm = tokenferry.{way}\n    comm.barrier()\n"
        "print('fine', comm.rank)\n")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", script],
        text=True, capture_output=True, timeout=120, env=os.environ | dict(OMP_NUM_THREADS="1"))
    assert sorted(line for line in done.stdout.split("\n") if "fine" in line) == ["fine 0", "fine 1"], done.stderr


def test_stores_and_comms_of_a_callers_store():
    class Mine:
        def __init__(self):
            self.values, self.changed = {}, threading.Condition()

        def set(self, key, value):
            with self.changed:
                self.values[key] = value
                self.changed.notify_all()

        def wait(self, key, timeout):
            with self.changed:
                self.changed.wait_for(lambda: key in self.values, timeout)
                return self.values.get(key)

        def remove(self, key):
            with self.changed:
                self.values.pop(key, None)

    for store in (Mine(), tokenferry.LocalStore(), tokenferry.TcpStore("127.0.0.1", 0, True, "secret")):
        store.set("a", b"\0bytes")
        assert store.wait("a", 1) == b"\0bytes" and store.wait("b", 0.01) is None
        store.remove("a")
        assert store.wait("a", 0) is None
        sizes = [None] * 2

        def rank(r, store=store, sizes=sizes):
            with tokenferry.join(store, r, 2, transport="shm") as comm:
                comm.barrier()
                sizes[r] = comm.size

        threads = [threading.Thread(target=rank, args=(r,)) for r in range(2)]
        [t.start() for t in threads]
        [t.join(ranks.TIMEOUT) for t in threads]
        assert sizes == [2, 2]


def test_a_missing_rank_is_named():
    with pytest.raises(tokenferry.TransportError, match="rank 1") as error:
        tokenferry.join(tokenferry.LocalStore(), 0, 2, transport="shm", join_timeout=0.2)
    assert error.value.peer == 1
    with pytest.raises(tokenferry.ConfigError, match="rank 1"):
        tokenferry.join(tokenferry.LocalStore(), 0, 2, join_timeout=0.2)


def test_split_and_capabilities():
    def body(comm):
        part = comm.split(comm.rank % 2, -comm.rank)
        assert comm.split(-1) is None
        part.barrier()
        assert part.size == 2 and part.rank == (1 if comm.rank < 2 else 0)
        assert comm.capabilities["one_process"] and comm.host_of(0) == 0
        with pytest.raises(tokenferry.ConfigError, match="rank 9"):
            comm.host_of(9)

    ranks.in_threads(4, body)


def test_what_a_callback_raises_reaches_its_caller_and_ends_the_others():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **SMALL)

        def experts(rows):
            if comm.rank == 1:
                raise ValueError("experts are ill")
            rows.out[:] = 0

        wanted = ValueError if comm.rank == 1 else tokenferry.TransportError
        with pytest.raises(wanted, match="experts are ill"):
            a2a.moe_forward_from_topk(X, IDS, WEIGHTS, experts)

    ranks.in_threads(2, body)


def test_wrong_arguments_leave_the_comm_usable():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **SMALL)
        frozen = np.zeros((1, H), np.float32)
        frozen.flags.writeable = False
        experts = lambda rows: np.copyto(rows.out, rows.x)  # noqa: E731
        for arguments, options, text in [
            ((X[:, :-1], IDS, WEIGHTS), {}, r"x is float32 \[1, 31\]"),
            ((X, IDS[:, :1], WEIGHTS), {}, "topk_ids"),
            ((X, IDS.astype(np.float32), WEIGHTS), {}, "ids are int32"),
            ((X, IDS + 1, WEIGHTS), {}, "expert 4, outside 0..3"),
            ((X, IDS, WEIGHTS.astype(np.float64)), {}, "weights are float32"),
            ((X.astype(np.complex64), IDS, WEIGHTS), {}, "nothing here takes"),
            (("text", IDS, WEIGHTS), {}, "is a str"),
            ((X, IDS, WEIGHTS), dict(out=frozen), "writable"),
            ((X, IDS, WEIGHTS), dict(accumulate=True), "no out"),
            ((X, IDS, WEIGHTS), dict(scales=WEIGHTS), "scales"),
            ((X, IDS, WEIGHTS), dict(nothing=1), "nothing"),
            ((X, IDS, WEIGHTS), dict(timeout=-1), "timeout"),
        ]:
            with pytest.raises(tokenferry.ConfigError, match=text):
                a2a.moe_forward_from_topk(*arguments, experts, **options)
        with pytest.raises(tokenferry.BrokenContract):
            a2a.combine_send()
        with pytest.raises(tokenferry.ConfigError, match="max_tokens"):
            a2a.dispatch_send(np.zeros((5, H), np.float32), np.zeros((5, 2), np.int32))
        np.testing.assert_array_equal(a2a.moe_forward_from_topk(X, IDS, WEIGHTS, experts), 2 * X)

    ranks.in_threads(2, body)


@pytest.mark.parametrize(
    "options, text",
    [(dict(topk=5), "top-5"), (dict(backend="best"), "best"), (dict(dispatch_dtype="int3"), "int3"),
     (dict(layout="round"), "round"), (dict(scoring="relu"), "relu"), (dict(on_dead_rank="cry"), "cry"),
     (dict(hidden=0), "hidden 0"), (dict(nothing=1), "nothing"), (dict(max_tokens="many"), "many")],
)
def test_options_that_cannot_be(options, text):
    def body(comm):
        with pytest.raises(tokenferry.ConfigError, match=text):
            tokenferry.AllToAll(comm, **(SMALL | options))

    ranks.in_threads(1, body)


def test_one_call_at_a_time_and_abort_from_another_thread():
    def body(comm):
        a2a = tokenferry.AllToAll(comm, **SMALL)
        comm.barrier()
        if comm.rank == 1:
            time.sleep(0.5)
            comm.abort("enough")
            return
        found = []

        def other():
            time.sleep(0.1)
            try:
                comm.barrier()
            except tokenferry.BrokenContract as error:
                found.append(str(error))

        thread = threading.Thread(target=other)
        thread.start()
        a2a.dispatch_send(X, IDS)
        with pytest.raises(tokenferry.TransportError, match="enough") as error:
            a2a.dispatch_recv()
        assert error.value.kind == "aborted" and error.value.peer == 1
        thread.join()
        assert "one at a time" in found[0]

    ranks.in_threads(2, body)


def dies(comm, doomed, on_dead_rank):
    a2a = tokenferry.AllToAll(comm, on_dead_rank=on_dead_rank, timeout=20, **SMALL)
    experts = lambda rows: np.copyto(rows.out, rows.x)  # noqa: E731
    a2a.moe_forward_from_topk(X, IDS, WEIGHTS, experts)
    if comm.rank == doomed:
        os.kill(os.getpid(), signal.SIGKILL)
    begin = time.monotonic()
    if on_dead_rank == "mask":
        y = a2a.moe_forward_from_topk(np.repeat(X, 9, 0), np.repeat(IDS, 9, 0), np.repeat(WEIGHTS, 9, 0), experts)
        assert a2a.lost_tokens == list(range(9))  # of three exchanges
        rows = a2a.dispatch(X, np.array([[0, -1]]), WEIGHTS)
        experts(rows)
        assert (a2a.combine() == X).all() and a2a.lost_tokens == []
        assert a2a.masked == [r == doomed for r in range(comm.size)]
        assert (y == 2 - (doomed in (0, 1))).all()
    else:
        with pytest.raises(tokenferry.TransportError) as error:
            a2a.moe_forward_from_topk(X, IDS, WEIGHTS, experts)
        assert error.value.peer == doomed and error.value.kind == "peer_died"
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize("on_dead_rank", ["fail", "mask"])
def test_a_killed_rank_is_named_or_masked(on_dead_rank):
    with ranks.Processes(3, dies, 1, on_dead_rank) as processes:
        found = processes.collect(2)
    assert sorted(found) == [0, 2]
    for good, result in found.values():
        assert good, result


INTERRUPTED = """
import os, signal, threading, time, numpy as np, tokenferry
def peer(comm):
    a2a = tokenferry.AllToAll(comm, **small)
    try:
        comm.progress(); time.sleep(0.2)
        while True: comm.progress(); time.sleep(0.01)
    except tokenferry.TransportError as error:
        print("peer:", error)
small = dict(num_experts=4, topk=2, hidden=32, max_tokens=4, dispatch_dtype="f32", combine_dtype="f32")
mine, theirs = tokenferry.local(2)
thread = threading.Thread(target=peer, args=(theirs,)); thread.start()
a2a = tokenferry.AllToAll(mine, **small)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
begin = time.monotonic()
try:
    if {what!r} == "barrier": mine.barrier(60)
    elif {what!r} == "make": tokenferry.AllToAll(mine, **small)
    else:
        a2a.dispatch_send(np.ones((1, 32), np.float32), np.array([[0, 3]]))
        a2a.dispatch_recv()
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - begin < 20)
thread.join()
"""


@pytest.mark.parametrize("what", ["dispatch_recv", "barrier", "make"])
def test_interrupt_ends_a_wait_and_the_group(what):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED.format(what=what)], text=True, capture_output=True,
                          timeout=ranks.TIMEOUT)
    assert "interrupted True" in done.stdout and "peer:" in done.stdout, (done.stdout, done.stderr)


def test_interrupt_ends_join():
    script = ("import os, signal, threading, tokenferry\n"
              "threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()\n"
              "try: tokenferry.join(tokenferry.LocalStore(), 0, 2, transport='shm', join_timeout=50)\n"
              "except KeyboardInterrupt: print('interrupted')\n")
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, timeout=20)
    assert done.stdout == "interrupted\n", done.stderr


def test_nothing_is_left_behind():
    def state():
        gc.collect()
        with open("/proc/self/statm", encoding="ascii") as statm:
            pages = int(statm.read().split()[1])
        return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")), pages

    def rounds(count):
        for _ in range(count):
            (comm,) = tokenferry.local(1, threads=2)
            a2a = tokenferry.AllToAll(comm, **SMALL)
            rows = a2a.dispatch(X, IDS, WEIGHTS)
            rows.out[:] = rows.x
            np.testing.assert_array_equal(a2a.combine(), 2 * X)

    rounds(50)
    before = state()
    rounds(300)
    after = state()
    assert after[:2] == before[:2]
    if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # which keeps what was freed
        assert after[2] - before[2] < 500  # pages of 4 KiB


def test_the_callers_floating_point_mode_is_its_own():
    tiny = np.float32(1e-40)  # a denormal: 0 where denormals are flushed

    def body(comm):
        a2a = tokenferry.AllToAll(comm, **SMALL)
        seen = []

        def experts(rows):
            seen.append(np.float32(tiny) * np.float32(1) != 0)
            rows.out[:] = 0

        a2a.moe_forward_from_topk(X, IDS, WEIGHTS, experts)
        assert seen == [True] and np.float32(tiny) * np.float32(1) != 0

    ranks.in_threads(2, body)
