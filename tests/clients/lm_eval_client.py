#!/usr/bin/env python3
"""lm-evaluation-harness against a running server: multiple choice over its two routes.

    lm_eval_client.py http://127.0.0.1:PORT KEY

The server runs assets/demo-moe. Log-likelihoods of all choices must be what the server's own log
probabilities of the prompt add up to. Prints one line and exits with 0, or says what differs.
"""

import json
import os
import pathlib
import sys
import tempfile
import urllib.request

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")

import lm_eval  # noqa: E402
import transformers  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

MODEL = pathlib.Path(__file__).resolve().parents[2] / "assets" / "demo-moe"
QUESTIONS = [
    ("The ferry carries", [" tokens", " bananas", " the experts home"], 0),
    ("An expert is", [" a rank", " a small network"], 1),
    ("What is 12 + 7?", [" 19", " 20", " Once upon a time"], 0),
]
TASK = """
task: ferry_choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{text}}}}"
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def post(url: str, key: str, body: dict) -> dict:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
        return json.load(answer)


def likelihoods_of_harness(kind: str, url: str, key: str, folder: str) -> list[list[float]]:
    """[questions][choices], as the harness computes them."""
    results = lm_eval.simple_evaluate(
        model=kind,
        model_args={
            "base_url": url,
            "model": "demo-moe",
            "tokenizer": str(MODEL),
            "num_concurrent": 2,
            "header": {"Authorization": f"Bearer {key}"},
        },
        tasks=["ferry_choices"],
        task_manager=TaskManager(include_path=folder),
        log_samples=True,
    )
    samples = sorted(results["samples"]["ferry_choices"], key=lambda sample: sample["doc_id"])
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in samples]


def likelihoods_of_server(url: str, key: str) -> list[list[float]]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL)
    all_sums = []
    for text, choices, _ in QUESTIONS:
        context = len(tokenizer.encode(text, add_special_tokens=False))
        sums = []
        for choice in choices:
            ids = tokenizer.encode(text + choice, add_special_tokens=False)
            body = {"model": "demo-moe", "prompt": ids, "max_tokens": 1, "prompt_logprobs": 0}
            told = post(f"{url}/v1/completions", key, body)["choices"][0]["prompt_logprobs"]
            sums.append(sum(told[at][str(ids[at])]["logprob"] for at in range(context, len(ids))))
        all_sums.append(sums)
    return all_sums


def main() -> None:
    url, key = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        data = pathlib.Path(folder) / "choices.jsonl"
        rows = [{"text": text, "choices": choices, "answer": answer} for text, choices, answer in QUESTIONS]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        (pathlib.Path(folder) / "choices.yaml").write_text(TASK.format(file=data))
        expected = likelihoods_of_server(url, key)
        routes = {"local-completions": "/v1/completions", "sglang-generate": "/generate"}
        for kind, route in routes.items():
            for got, want in zip(likelihoods_of_harness(kind, url + route, key, folder), expected, strict=True):
                if len(got) != len(want) or any(abs(a - b) > 1e-4 for a, b in zip(got, want)):
                    sys.exit(f"lm_eval_client.py: {kind}: {got} instead of {want}")
    print("lm_eval: all as expected")


main()
