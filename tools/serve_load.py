#!/usr/bin/env python3
"""Loads a server with streaming clients and reports errors, latency and throughput.

    tools/serve_load.py --port 30000 [--clients 64] [--seconds 60] [--max-tokens 64] [--requests N]

Each client asks for one stream after another, each prompt with a seed of its own; every stream is compared
with what the same body gave when it ran alone. --requests ends after so many instead of a time.
"""

import argparse
import http.client
import json
import threading
import time

PROMPT = "Once upon a time there was a little fox named Mia."


def stream(args, seed):
    """Token ids of one stream, seconds to the first token, and seconds between later ones."""
    body = {"text": PROMPT[: 10 + seed % 40], "max_tokens": args.max_tokens, "temperature": 0.9,
            "seed": seed, "ignore_eos": True, "stream": True}
    connection = http.client.HTTPConnection("127.0.0.1", args.port, timeout=120)
    begin = last = time.perf_counter()
    connection.request("POST", "/generate", json.dumps(body))
    reply = connection.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"status {reply.status}: {reply.read()[:200]!r}")
    ids, first, gaps, done = [], None, [], False
    for line in reply:
        if line.startswith(b"data: [DONE]"):
            done = True
        elif line.startswith(b"data: "):
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(event["error"]["message"])
            now = time.perf_counter()
            if first is None:
                first = now - begin
            else:
                gaps.append(now - last)
            last, ids = now, event["output_ids"]
    connection.close()
    if not done:
        raise RuntimeError("the stream broke off")
    return ids, first, gaps


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else 0.0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args()

    seeds = range(args.clients)
    alone = {seed: stream(args, seed)[0] for seed in seeds}
    lock, errors, firsts, gaps = threading.Lock(), [], [], []
    counts = {"tokens": 0, "streams": 0, "different": 0, "asked": 0}
    end = time.perf_counter() + args.seconds

    def client(seed):
        while True:
            with lock:
                over = counts["asked"] >= args.requests if args.requests else time.perf_counter() > end
                if over:
                    return
                counts["asked"] += 1
            try:
                ids, first, between = stream(args, seed)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                with lock:
                    errors.append(str(error))
                continue
            with lock:
                counts["streams"] += 1
                counts["tokens"] += len(ids)
                counts["different"] += ids != alone[seed]
                firsts.append(first)
                gaps.extend(between)

    begin = time.perf_counter()
    threads = [threading.Thread(target=client, args=(seed,)) for seed in seeds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    print(json.dumps({
        "clients": args.clients, "seconds": round(seconds, 1), **counts,
        "errors": len(errors), "first_error": errors[0] if errors else None,
        "tokens_per_s": round(counts["tokens"] / seconds, 1),
        "first_token_ms": {"p50": 1e3 * quantile(firsts, 0.5), "p99": 1e3 * quantile(firsts, 0.99)},
        "inter_token_ms": {"p50": 1e3 * quantile(gaps, 0.5), "p99": 1e3 * quantile(gaps, 0.99)}}))
    return 1 if errors or counts["different"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
