#!/usr/bin/env python3
"""Anthropic's own Python client against a running server: what a user of it writes works as it is.

    anthropic_client.py http://127.0.0.1:PORT KEY

The model must have a chat template. Prints one line and exits with 0, or says what differs.
"""

import sys

import anthropic


def expect(holds: bool, what: object) -> None:
    if not holds:
        sys.exit(f"anthropic_client.py: unexpected: {what}")


def refused(error: type[anthropic.APIStatusError], call) -> anthropic.APIStatusError:
    try:
        call()
    except error as e:
        return e
    sys.exit(f"anthropic_client.py: no {error.__name__}")


def main(url: str, key: str) -> None:
    client = anthropic.Anthropic(base_url=url, api_key=key, max_retries=0, timeout=120)
    model = "demo-moe"
    asked = {"model": model, "messages": [{"role": "user", "content": "What is 12 + 7?"}], "system": ""}
    same = {**asked, "max_tokens": 8, "extra_body": {"temperature": 0}}

    whole = client.messages.create(**same)
    expect(whole.role == "assistant" and whole.content[0].text.strip() == "19", whole)
    expect(whole.stop_reason == "end_turn", whole)
    read = whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    counted = client.messages.count_tokens(**asked)
    expect(counted.input_tokens == read, (counted, whole.usage))

    with client.messages.stream(**same) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    expect(text == whole.content[0].text == last.content[0].text, (text, last))
    expect(last.stop_reason == whole.stop_reason, last)
    expect(last.usage.output_tokens == whole.usage.output_tokens, last.usage)

    tool = {
        "name": "weather",
        "input_schema": {
            "type": "object",
            "properties": {"place": {"enum": ["Bern", "Rome"]}},
            "required": ["place"],
            "additionalProperties": False,
        },
    }
    choice = {"type": "tool", "name": "weather"}
    for seed in range(32):  # a model that likes blanks does not always come to an end
        sampling = {"temperature": 2, "seed": seed}
        forced = {**same, "max_tokens": 64, "tools": [tool], "tool_choice": choice, "extra_body": sampling}
        try:
            called = client.messages.create(**forced)
        except anthropic.BadRequestError as e:
            expect("grammars" in e.message, e.message)  # of a build without
            called = None
        if called is None or called.stop_reason == "tool_use":
            break
    if called is not None:
        use = called.content[0]
        expect(use.type == "tool_use" and use.name == "weather" and use.input["place"] in ("Bern", "Rome"), called)
        with client.messages.stream(**forced) as stream:
            expect(stream.get_final_message().content[0].input == use.input, "a call in a stream")
        result = {"type": "tool_result", "tool_use_id": use.id, "content": "Rain."}
        history = [*same["messages"], {"role": "assistant", "content": called.content}, {"role": "user", "content": [result]}]
        expect(client.messages.create(**{**same, "messages": history}).type == "message", "an answer to a result")

    picture = {"type": "image", "source": {"type": "url", "url": "https://a.example/a.png"}}
    shown = [{"role": "user", "content": [picture]}]
    wrong = refused(anthropic.BadRequestError, lambda: client.messages.create(**{**same, "messages": shown}))
    expect(wrong.body["error"]["type"] == "invalid_request_error" and "image" in wrong.message, wrong.body)
    refused(anthropic.NotFoundError, lambda: client.messages.create(**{**same, "model": "another"}))
    stranger = client.with_options(api_key="not the key")
    refused(anthropic.AuthenticationError, lambda: stranger.messages.create(**same))
    print(f"anthropic {anthropic.__version__}: as expected")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
