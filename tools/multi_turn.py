#!/usr/bin/env python3
"""Conversations of several turns behind one long system prompt, with and without remembered prompts.

    tools/multi_turn.py FERRY --model DIR [--conversations 16] [--turns 8] [--system 1000] [--pairs 2] [-- serve's options]

Starts `ferry serve` twice a pair, with its prefix cache and with --disable-prefix-cache, and lets all conversations run at
once. A turn sends what was said so far, so its prompt grows by the answer and --user tokens. Prints tokens/s of answers, the
median and the 99th percentile of the time to the first token, and the part of the prompts' tokens that was cached; the
answers must be the same.
"""

import argparse
import http.client
import json
import random
import statistics
import subprocess
import sys
import threading
import time


def turn(port, ids, tokens):
    """The answer's ids, seconds to the first token, and cached tokens."""
    body = json.dumps({"input_ids": ids, "max_new_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    begin, first, last = time.perf_counter(), None, None
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    reply = connection.getresponse()
    for line in reply:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - begin
            last = line[6:]
    connection.close()
    last = json.loads(last)
    return last["output_ids"], first, last["meta_info"]["cached_tokens"]


def converse(port, args):
    rng = random.Random(1)
    system = rng.choices(range(3, 256), k=args.system)
    answers, firsts, cached, prompts = {}, [], [], []

    def conversation(number):
        own = random.Random(number + 2)
        ids = list(system)
        for _ in range(args.turns):
            ids += own.choices(range(3, 256), k=args.user)
            answer, first, found = turn(port, ids, args.answer)
            firsts.append(first)
            cached.append(found)
            prompts.append(len(ids))
            ids += answer
        answers[number] = ids

    threads = [threading.Thread(target=conversation, args=(n,)) for n in range(args.conversations)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begin
    firsts.sort()
    print(f"{len(firsts) * args.answer / seconds:8.1f} tokens/s, first token {statistics.median(firsts) * 1e3:8.1f} ms "
          f"(p99 {firsts[int(len(firsts) * 0.99)] * 1e3:.1f}), {sum(cached) / sum(prompts):.3f} of the prompts cached", flush=True)
    return answers


def serve(args, options):
    server = subprocess.Popen([args.ferry, "serve", "--model", args.model, "--port", "0", "--json", "--no-access-log",
                               *args.serve, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        return converse(json.loads(server.stdout.readline())["port"], args)
    finally:
        server.terminate()
        server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ferry")
    parser.add_argument("--model", required=True)
    parser.add_argument("--conversations", type=int, default=16)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--system", type=int, default=1000)
    parser.add_argument("--user", type=int, default=30)
    parser.add_argument("--answer", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=2)
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    args = parser.parse_args(given[:at])
    args.serve = given[at + 1 :]
    for _ in range(args.pairs):
        print("with    ", end="", flush=True)
        kept = serve(args, [])
        print("without ", end="", flush=True)
        if serve(args, ["--disable-prefix-cache"]) != kept:
            raise SystemExit("the answers differ")


if __name__ == "__main__":
    main()
