#!/usr/bin/env python3
"""SGLang's router in front of two running servers of one model: requests go to both, answers are those of one, streams
pass, and when a server is killed the other one answers.

    sglang_router_client.py http://127.0.0.1:PORT http://127.0.0.1:PORT PID

PID is that of the second server, which is killed. The model must have a chat template. Prints one line and exits with
0, or says what differs.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

QUESTIONS = ["Who is Mia?", "What is 3 + 4?", "Tell me a story.", "Where is the cat?"]
PATIENCE = 60  # seconds


def expect(holds: bool, what: object) -> None:
    if not holds:
        sys.exit(f"sglang_router_client.py: unexpected: {what}")


def call(url: str, body: dict | None = None) -> str:
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if body is not None:
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.read().decode()


def chat(url: str, question: str, **more) -> str:
    message = {"role": "user", "content": question}
    body = {"model": "demo-moe", "messages": [message], "max_tokens": 12, "temperature": 0} | more
    return call(url + "/v1/chat/completions", body)


def content(answer: str) -> str:
    return json.loads(answer)["choices"][0]["message"]["content"]


def streamed(answer: str) -> str:
    lines = [line[6:] for line in answer.splitlines() if line.startswith("data: ")]
    expect(lines and lines[-1] == "[DONE]", answer)
    deltas = [choice["delta"] for line in lines[:-1] for choice in json.loads(line)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def finished(server: str) -> int:
    for line in call(server + "/metrics").splitlines():
        if line.startswith("ferry_requests_finished_total "):
            return int(float(line.split()[1]))
    sys.exit(f"sglang_router_client.py: {server}/metrics counts no finished requests")


def free_port() -> int:
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def wait_until_ready(router: str, process: subprocess.Popen) -> None:
    for _ in range(10 * PATIENCE):
        expect(process.poll() is None, f"the router ended with status {process.returncode}")
        try:
            return expect("demo-moe" in call(router + "/v1/models"), "the router knows no demo-moe")
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    sys.exit("sglang_router_client.py: the router is not ready")


def check(router: str, first: str, second: str, pid: int) -> None:
    alone = {question: content(chat(first, question)) for question in QUESTIONS}
    before = finished(first), finished(second)
    for question in QUESTIONS * 2:
        expect(content(chat(router, question)) == alone[question], f"another answer to {question}")
    shares = finished(first) - before[0], finished(second) - before[1]
    expect(sum(shares) == 2 * len(QUESTIONS) and min(shares) > 0, f"requests of the servers: {shares}")
    for question in QUESTIONS:
        expect(streamed(chat(router, question, stream=True)) == alone[question], f"another stream for {question}")
    os.kill(pid, signal.SIGKILL)
    for question in QUESTIONS * 2:
        expect(content(chat(router, question)) == alone[question], f"another answer after the kill to {question}")


def main() -> None:
    first, second, pid = sys.argv[1:]
    port = free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--worker-urls", first, second]
    command += ["--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin", "--prometheus-port"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command + [str(free_port())], stdout=log, stderr=log)
        try:
            router = f"http://127.0.0.1:{port}"
            wait_until_ready(router, process)
            check(router, first, second, int(pid))
        finally:
            process.terminate()
            process.wait()
    print("two servers behind a router answer as one")


if __name__ == "__main__":
    main()
