#!/usr/bin/env python3
"""OpenAI's own Python client against a running server: what a user of it writes works as it is.

    openai_client.py http://127.0.0.1:PORT KEY

The model must have a chat template. Prints one line and exits with 0, or says what differs.
"""

import sys

import openai


def expect(holds: bool, what: object) -> None:
    if not holds:
        sys.exit(f"openai_client.py: unexpected: {what}")


def refused(error: type[openai.APIStatusError], call) -> openai.APIStatusError:
    try:
        call()
    except error as e:
        return e
    sys.exit(f"openai_client.py: no {error.__name__}")


def main(url: str, key: str) -> None:
    client = openai.OpenAI(base_url=url + "/v1", api_key=key, max_retries=0, timeout=120)
    model = client.models.list().data[0].id

    same = {"model": model, "prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}
    whole = client.completions.create(**same)
    expect(whole.object == "text_completion" and whole.choices[0].text != "", whole)
    expect(whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
    parts = list(client.completions.create(**same, stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].text for p in parts if p.choices)
    expect(text == whole.choices[0].text, (text, whole.choices[0].text))
    expect(parts[-1].usage.total_tokens == whole.usage.total_tokens, parts[-1])
    expect(parts[-1].usage.prompt_tokens_details.cached_tokens < whole.usage.prompt_tokens, parts[-1])
    several = client.completions.create(**{**same, "prompt": ["Once upon a time", "Two"]}, logprobs=2)
    expect([c.index for c in several.choices] == [0, 1], several)
    expect(several.choices[0].text == whole.choices[0].text, several)
    expect(len(several.choices[0].logprobs.token_logprobs) == whole.usage.completion_tokens, several)

    chat = {"model": model, "messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 8, "temperature": 0}
    said = client.chat.completions.create(**chat)
    expect(said.choices[0].message.role == "assistant", said)
    deltas = [p.choices[0].delta.content or "" for p in client.chat.completions.create(**chat, stream=True)]
    expect("".join(deltas) == said.choices[0].message.content, (deltas, said))

    wrong = refused(openai.BadRequestError, lambda: client.completions.create(**{**same, "max_tokens": -1}))
    expect("max_tokens" in wrong.message, wrong.message)
    refused(openai.NotFoundError, lambda: client.get("/nowhere", cast_to=object))
    stranger = client.with_options(api_key="not the key")
    refused(openai.AuthenticationError, lambda: stranger.completions.create(**same))
    print(f"openai {openai.__version__}: as expected")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
