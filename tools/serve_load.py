#!/usr/bin/env python3
"""Loads a server with streaming clients and reports errors, latency and throughput.

    tools/serve_load.py --port 30000 [--clients 64] [--seconds 60] [--max-tokens 64] [--requests N] [--prompt-tokens N]
                        [--idle N] [--pid P]

Each client asks for one stream after another, each prompt with a seed of its own; every stream is compared
with what the same body gave when it ran alone. --requests ends after so many instead of a time.
--idle holds so many more connections open, on each of which a small request is made every few seconds, before
the server would close it. --pid counts the threads of that process meanwhile.

One thread reads all sockets and looks into a stream's JSON only when it has ended, so that on a machine that
client and server share most of the time is the server's. Tokens that arrive together count as a gap of 0.
"""

import argparse
import json
import os
import random
import selectors
import socket
import time

PROMPT = "Once upon a time there was a little fox named Mia."


def prompt(args, seed):
    if args.prompt_tokens:
        return {"input_ids": random.Random(seed).choices(range(3, 256), k=args.prompt_tokens)}
    return {"text": PROMPT[: 10 + seed % 40]}


class Stream:
    """One request on a connection of its own, as far as its reply has come."""

    def __init__(self, args, seed):
        body = json.dumps(prompt(args, seed) | {"max_tokens": args.max_tokens, "temperature": 0.9, "seed": seed,
                                                "ignore_eos": True, "stream": True}).encode()
        self.seed, self.received, self.first, self.gaps = seed, [], None, []
        self.begin = self.last = time.perf_counter()
        self.socket = socket.create_connection(("127.0.0.1", args.port), timeout=120)
        self.socket.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                            b"Content-Length: %d\r\n\r\n%s" % (len(body), body))

    def read(self):
        """Takes what is there; False at the end of the reply."""
        data = self.socket.recv(1 << 16)
        if not data:
            self.socket.close()
            return False
        now, events = time.perf_counter(), data.count(b"data: {")
        self.received.append(data)
        if events:
            if self.first is None:
                self.first = now - self.begin
            else:
                self.gaps.append(now - self.last)
            self.gaps.extend([0.0] * (events - 1))
            self.last = now
        return True

    def ids(self):
        """Token ids, once the reply has ended."""
        text = b"".join(self.received)
        if b" 200 " not in text[:20]:
            raise RuntimeError(text[:300].decode(errors="replace"))
        events = [line[6:] for line in text.split(b"\n") if line.startswith(b"data: ")]
        if not events or events[-1] != b"[DONE]":
            raise RuntimeError(f"the stream broke off: {text[-300:]!r}")
        last = json.loads(events[-2])
        if "error" in last:
            raise RuntimeError(last["error"]["message"])
        return last["output_ids"]


class Idle:
    """A connection that is mostly held open."""

    EVERY = 3  # seconds; the server closes those that are silent for five

    def __init__(self, args, number):
        self.answered = True
        self.due = time.perf_counter() + self.EVERY * number / args.idle
        self.socket = socket.create_connection(("127.0.0.1", args.port), timeout=120)

    def ask(self):
        if not self.answered:
            raise RuntimeError("no answer on a connection that was held open")
        self.answered = False
        self.due += self.EVERY
        self.socket.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")

    def read(self):
        """As for a stream."""
        answer = self.socket.recv(1 << 16)
        if answer and (self.answered or not answer.startswith(b"HTTP/1.1 200")):
            raise RuntimeError(answer[:300].decode(errors="replace"))
        self.answered = True
        return bool(answer)


def alone(args, seed):
    stream = Stream(args, seed)
    while stream.read():
        pass
    return stream.ids()


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
    parser.add_argument("--prompt-tokens", type=int, default=0, help="random ids instead of a text")
    parser.add_argument("--idle", type=int, default=0, help="connections that are held open beside the streams")
    parser.add_argument("--pid", type=int, help="of the server, whose threads are counted")
    args = parser.parse_args()

    expected = {seed: alone(args, seed) for seed in range(args.clients)}
    errors, firsts, gaps = [], [], []
    asked, tokens, streams, different = 0, 0, 0, 0
    selector = selectors.DefaultSelector()
    begin = time.perf_counter()

    def start(seed):
        nonlocal asked
        over = asked >= args.requests if args.requests else time.perf_counter() > begin + args.seconds
        if over:
            return
        asked += 1
        stream = Stream(args, seed)
        selector.register(stream.socket, selectors.EVENT_READ, stream)

    idle = [Idle(args, number) for number in range(args.idle)]
    for one in idle:
        selector.register(one.socket, selectors.EVENT_READ, one)
    for seed in range(args.clients):
        start(seed)
    answers = threads = 0
    while len(selector.get_map()) > len(idle):
        now = time.perf_counter()
        for one in idle:
            if one.due <= now:
                one.ask()
        if args.pid:
            threads = max(threads, len(os.listdir(f"/proc/{args.pid}/task")))
        for key, _ in selector.select(timeout=0.1):
            stream = key.data
            if isinstance(stream, Idle):
                if not stream.read():
                    raise RuntimeError("a connection that was held open has ended")
                answers += 1
                continue
            try:
                if stream.read():
                    continue
                ids = stream.ids()
                streams, tokens = streams + 1, tokens + len(ids)
                different += ids != expected[stream.seed]
                firsts.append(stream.first)
                gaps.extend(stream.gaps)
            except (OSError, RuntimeError, ValueError) as error:
                errors.append(str(error))
            selector.unregister(key.fileobj)
            start(stream.seed)
    seconds = time.perf_counter() - begin
    print(json.dumps({
        "clients": args.clients, "seconds": round(seconds, 1), "tokens": tokens, "streams": streams,
        "idle": len(idle), "idle_answers": answers, "threads": threads,
        "different": different, "errors": len(errors), "first_error": errors[0] if errors else None,
        "tokens_per_s": round(tokens / seconds, 1),
        "first_token_ms": {"p50": 1e3 * quantile(firsts, 0.5), "p99": 1e3 * quantile(firsts, 0.99)},
        "inter_token_ms": {"mean": 1e3 * sum(gaps) / max(len(gaps), 1), "p50": 1e3 * quantile(gaps, 0.5),
                           "p99": 1e3 * quantile(gaps, 0.99)}}))
    return 1 if errors or different else 0


if __name__ == "__main__":
    raise SystemExit(main())
