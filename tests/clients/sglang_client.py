#!/usr/bin/env python3
"""SGLang's front-end language against a running server.

    sglang_client.py http://127.0.0.1:PORT KEY

The server runs assets/demo-moe. Prints one line and exits with 0, or says what differs.
"""

import re
import sys

import sglang
from sglang import assistant, function, gen, select, user


@function
def add(s, a, b):
    s += f"{a} + {b} ="
    s += gen("sum", max_tokens=8, stop="\n", temperature=0)


@function
def choose(s):
    s += "Once upon a"
    s += select("word", choices=[" time", " zebra", " moon"])


@function
def forked(s):
    s += "2 + 2 ="
    forks = s.fork(3)
    for fork in forks:
        fork += gen("x", max_tokens=4, temperature=0.8)
    forks.join()
    s += gen("digits", max_tokens=8, regex="[0-9]{2}", temperature=0)


@function
def typed(s):
    s += "7 + 8 ="
    s += gen("n", dtype=int, max_tokens=6, temperature=0)


@function
def measured(s):
    s += "12 + 34 ="
    s += gen("y", max_tokens=3, temperature=0, return_logprob=True, top_logprobs_num=2, return_text_in_logprobs=True)


@function
def answered(s):
    s += user("12 + 34 =")
    s += assistant(gen("answer", max_tokens=8, temperature=0))


def main():
    endpoint = sglang.RuntimeEndpoint(sys.argv[1], api_key=sys.argv[2])
    sglang.set_default_backend(endpoint)
    assert add.run(a=12, b=34)["sum"].strip() == "46"
    batch = add.run_batch([dict(a=1, b=2), dict(a=30, b=12), dict(a=5, b=5)])
    assert [state["sum"] for state in batch] == [add.run(a=a, b=b)["sum"] for a, b in ((1, 2), (30, 12), (5, 5))]
    streamed = "".join(add.run(a=12, b=34, stream=True).text_iter())
    assert streamed.startswith("12 + 34 = 46"), streamed
    assert choose.run()["word"] == " time"
    assert re.fullmatch("[0-9]{2}", forked.run()["digits"])
    assert re.fullmatch("-?[0-9]+", typed.run()["n"]), typed.run()["n"]
    meta = measured.run().get_meta_info("y")
    assert len(meta["output_token_logprobs"]) == len(meta["output_top_logprobs"]) == 3
    for (own, token, text), top in zip(meta["output_token_logprobs"], meta["output_top_logprobs"]):
        assert top[0] == [own, token, text] and top[0][0] >= top[1][0] and isinstance(text, str)
    assert isinstance(answered.run()["answer"], str)
    endpoint.flush_cache()
    print("SGLang's front-end: sums, batches, streams, choices, forks, forms and log probabilities are as expected")


if __name__ == "__main__":
    main()
