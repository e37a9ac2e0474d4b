"""A model in this process: prompts in, tokens out.

    python examples/python/generate.py [MODEL] [PROMPT ...]
"""

import sys

import tokenferry

model = sys.argv[1] if len(sys.argv) > 1 else "assets/demo-moe"
prompts = sys.argv[2:] or ["12 + 34 =", "Once upon a time there was a little fox."]

with tokenferry.Engine(model, ranks=2) as engine:
    for result in engine.generate(prompts, temperature=0, max_tokens=24, logprobs=1):
        choice = result.outputs[0]
        print(f"{result.prompt}{choice.text}  [{choice.finish_reason}, {len(choice.token_ids)} tokens, "
              f"first logprob {choice.logprobs[0][0].logprob:.3f}]")

    print("and token by token:", prompts[0], end="")
    with engine.stream(prompts[0], temperature=0, max_tokens=8) as stream:
        for token in stream:
            print(token.text, end="", flush=True)
    print()
