#!/usr/bin/env python3
"""What `vllm serve` does when one of its ranks is killed while requests run. By hand, not in CI.

    scripts/setup.sh vllm
    build/venv-vllm/bin/python tests/vllm/dead_rank.py [ROW ...] [--list]

Each row starts `vllm serve` with workers of its own, keeps it busy, and kills one process of a rank by SIGKILL. Then all of
this must hold, each within BOUND seconds: every request that was running has an answer (5xx) or a closed connection, and so
has every later one; the server's process ends, where there are several engines with a status that is not 0 (with one engine
vLLM's is 0 whatever ended it); none of its processes is left; the log says why, and a TransportError there (a rank waited in a MoE layer, and not in a collective of vLLM's own) names the rank that
has died. Exit status 1 where a row does otherwise.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error

from greedy import DEMO, ROOT, asked, prompts, server

BOUND = 60  # seconds
CLIENTS = 8

# name: model, ranks, and which process dies, as it calls itself, of which expert-parallel rank
ROWS = {
    "dp2": dict(model="demo", dp=2, dies=r"Worker_DP1(_|$)", rank=1),
    "dp2-first": dict(model="demo", dp=2, dies=r"Worker_DP0(_|$)", rank=0),
    "dp2-engine": dict(model="demo", dp=2, dies=r"EngineCore_DP1$", rank=1),
    "tp2": dict(model="wide", tp=2, dies=r"Worker_TP1(_|$)", rank=1),
    "tp2-first": dict(model="wide", tp=2, dies=r"Worker_TP0(_|$)", rank=0),
    "tp2-dp2": dict(model="wide", tp=2, dp=2, dies=r"Worker_DP1_TP1(_|$)", rank=3),
}
# What vLLM itself says of a process that is gone.
OF_VLLM = r"\([^)]*\) ERROR.*(?:died unexpectedly|Connection closed by peer|Connection reset by peer).*"


def title(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def processes_of(session):
    """The pids of a session that still run, each with what it calls itself."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z" and fields[3] == str(session):
            found[int(entry.name)] = title(entry.name)
    return found


class Clients:
    """Threads that ask without end, until an answer is none."""

    def __init__(self, port, model):
        self.done, self.ends, self.port, self.model = 0, {}, port, model
        texts = prompts()
        self.threads = [threading.Thread(target=self._ask, args=(number, texts[number])) for number in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def _ask(self, number, text):
        while number not in self.ends:
            try:
                asked(self.port, self.model, text, tokens=200, ignore_eos=True)
                self.done += 1
            except urllib.error.HTTPError as error:
                self.ends[number] = f"HTTP {error.code}"
            except OSError as error:
                self.ends[number] = type(getattr(error, "reason", error)).__name__

    def wait_for_work(self):
        deadline = time.monotonic() + 120
        while self.done < CLIENTS:
            if time.monotonic() > deadline or self.ends:
                raise RuntimeError(f"no work before anything was killed: {self.done} answers, {self.ends}")
            time.sleep(0.05)


def seconds_until(condition, begin):
    while not condition():
        if time.monotonic() > begin + BOUND:
            return None
        time.sleep(0.02)
    return time.monotonic() - begin


def killed(row):
    """Kills a rank; what was found, and what should have been otherwise."""
    with server(row) as (process, port, log):
        clients = Clients(port, row["path"])
        try:
            clients.wait_for_work()
            doomed = [pid for pid, name in processes_of(process.pid).items() if re.search(row["dies"], name)]
            if len(doomed) != 1:
                raise RuntimeError(f"no process is called {row['dies']}: {processes_of(process.pid)}")
            begin = time.monotonic()
            os.kill(doomed[0], signal.SIGKILL)
            answered = seconds_until(lambda: len(clients.ends) == CLIENTS, begin)
            ended = seconds_until(lambda: process.poll() is not None, begin)
            gone = seconds_until(lambda: not processes_of(process.pid), begin)
        finally:
            left = processes_of(process.pid)
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            for number in range(CLIENTS):
                clients.ends.setdefault(number, "no answer")
            for thread in clients.threads:
                thread.join()
        log.seek(0)
        text = log.read()
        if os.environ.get("KEEP_LOG"):
            pathlib.Path(os.environ["KEEP_LOG"]).write_text(text)
    ours = sorted(set(re.findall(r"TransportError: (.*)", text)))
    theirs = sorted({re.sub(r" pid=\d+|ERROR [-\d: ]*|\[\S+\.py:\d+\] ", "", line) for line in re.findall(OF_VLLM, text)})
    wrong = []
    if answered is None or any(not re.match("HTTP 5|Connection|RemoteDisconnected", end) for end in clients.ends.values()):
        wrong.append("requests without an answer")
    if ended is None:
        wrong.append("the server did not end")
    if process.returncode == 0 and row.get("dp", 1) > 1:
        wrong.append("the server's status was 0")
    if gone is None:
        wrong.append(f"left behind: {', '.join(left.values())}")
    if not ours and not theirs:
        wrong.append("nobody says what has happened")
    if any(not re.search(rf"\brank {row['rank']}\b", line) for line in ours):
        wrong.append("a TransportError names another rank")
    found = dict(answers=sorted(set(clients.ends.values())), answered=answered, ended=ended, gone=gone,
                 status=process.returncode, ours=ours, vllms=theirs)
    return found, wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="default: all")
    parser.add_argument("--list", action="store_true", help="name the rows")
    options = parser.parse_args()
    if options.list:
        return print(*ROWS, sep="\n")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ROOT / "tests/vllm/widen.py", f"{folder}/wide"], check=True)
        for name in options.rows or ROWS:
            row = ROWS[name] | dict(path=dict(demo=str(DEMO), wide=f"{folder}/wide")[ROWS[name]["model"]])
            try:
                found, wrong = killed(row)
                print(f"{name:12} {'FAILED: ' + '; '.join(wrong) if wrong else 'good'}\n{json.dumps(found, indent=2)}", flush=True)
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                wrong = [error]
                print(f"{name:12} FAILED: {error}", flush=True)
            failed += bool(wrong)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
