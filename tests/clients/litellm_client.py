#!/usr/bin/env python3
"""LiteLLM against a running server, as the provider of OpenAI's and of Anthropic's API.

    litellm_client.py http://127.0.0.1:PORT KEY

The model must have a chat template. Prints one line and exits with 0, or says what differs.
"""

import os
import sys

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # it asks the network for prices otherwise
import litellm  # noqa: E402


def expect(holds: bool, what: object) -> None:
    if not holds:
        sys.exit(f"litellm_client.py: unexpected: {what}")


def main() -> None:
    url, key = sys.argv[1:]
    question = {"messages": [{"role": "user", "content": "What is 12 + 7?"}], "temperature": 0, "max_tokens": 8}
    openai = {"model": "openai/demo-moe", "api_base": f"{url}/v1", "api_key": key}
    anthropic = {"model": "anthropic/demo-moe", "api_base": url, "api_key": key}

    whole = litellm.completion(**openai, **question)
    text = whole.choices[0].message.content
    expect(text and whole.usage.completion_tokens > 0, whole)
    parts = litellm.completion(**openai, **question, stream=True)
    streamed = "".join(part.choices[0].delta.content or "" for part in parts)
    expect(streamed == text, (streamed, text))
    messages = litellm.completion(**anthropic, **question)
    expect(messages.choices[0].message.content == text, (messages, text))

    prompt = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 8, "logprobs": 2}
    completion = litellm.text_completion(**{**openai, "model": "text-completion-openai/demo-moe"}, **prompt)
    expect(len(completion.choices[0].logprobs.tokens) == completion.usage.completion_tokens, completion)

    try:
        litellm.completion(**openai, **{**question, "temperature": -1})
        expect(False, "a temperature of -1 is taken")
    except litellm.BadRequestError as e:
        expect("temperature" in str(e), e)
    try:
        litellm.completion(**{**openai, "api_key": "wrong"}, **question)
        expect(False, "a wrong key is taken")
    except litellm.AuthenticationError:
        pass
    print("litellm: all as expected")


main()
