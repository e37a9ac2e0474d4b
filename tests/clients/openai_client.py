#!/usr/bin/env python3
"""OpenAI's own Python client against a running server: what a user of it writes works as it is.

    openai_client.py http://127.0.0.1:PORT KEY

The model must have a chat template. Prints one line and exits with 0, or says what differs.
"""

import json
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


def first_whole(client: openai.OpenAI, request: dict) -> tuple:
    """The first answer that is not cut off, and its request: a model that likes blanks does not always come to an end."""
    for seed in range(32):
        request = {**request, "extra_body": {"seed": seed}}
        response = client.responses.create(**request)
        if response.status == "completed":
            return response, request
    sys.exit("openai_client.py: no answer came to an end")


def check_responses(client: openai.OpenAI, model: str) -> None:
    same = {"model": model, "input": "What is 12 + 7?", "temperature": 0, "max_output_tokens": 8}
    whole = client.responses.create(**same)
    expect(whole.status == "completed" and whole.output_text.strip() == "19", whole)
    expect(whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens, whole.usage)
    with client.responses.stream(**same) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        last = stream.get_final_response()
    expect(text == whole.output_text == last.output_text, (text, last))

    kept = client.responses.retrieve(whole.id)
    expect(kept.to_dict() == whole.to_dict(), kept)
    more = client.responses.create(**{**same, "input": "What is 3 + 4?", "previous_response_id": whole.id})
    items = client.responses.input_items.list(more.id, order="asc").data
    expect([item.type for item in items] == ["message"] * 3, items)
    expect(items[1].content[0].text == whole.output_text, items)
    client.responses.delete(whole.id)
    refused(openai.NotFoundError, lambda: client.responses.retrieve(whole.id))
    gone = refused(
        openai.BadRequestError, lambda: client.responses.create(**{**same, "previous_response_id": whole.id})
    )
    expect(gone.code == "previous_response_not_found" and gone.param == "previous_response_id", gone.body)

    parameters = {
        "type": "object",
        "properties": {"place": {"enum": ["Bern", "Rome"]}},
        "required": ["place"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "name": "weather", "parameters": parameters, "strict": True}
    longer = {**same, "max_output_tokens": 64, "temperature": 2}
    forced = {**longer, "tools": [tool], "tool_choice": {"type": "function", "name": "weather"}}
    try:
        called, forced = first_whole(client, forced)
    except openai.BadRequestError as e:
        expect("grammars" in e.message, e.message)  # of a build without
    else:
        call = called.output[0]
        expect(call.type == "function_call" and json.loads(call.arguments)["place"] in ("Bern", "Rome"), called)
        with client.responses.stream(**forced) as stream:
            expect(stream.get_final_response().output[0].arguments == call.arguments, "a call in a stream")
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
        history = [{"role": "user", "content": same["input"]}, *called.output, result]
        expect(client.responses.create(**{**same, "input": history}).status, "an answer to a result")
        form = {"format": {"type": "json_schema", "name": "place", "schema": parameters}}
        formed, _ = first_whole(client, {**longer, "text": form})
        expect(json.loads(formed.output_text)["place"] in ("Bern", "Rome"), formed)

    wrong = refused(openai.BadRequestError, lambda: client.responses.create(**{**same, "background": True}))
    expect("background" in wrong.message, wrong.message)


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

    check_responses(client, model)

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
