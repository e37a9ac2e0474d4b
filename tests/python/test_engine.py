"""Generation in this process, on the demo model."""

import json
import os
import signal
import threading
import types

import pytest
import tokenferry

MODEL = os.path.join(os.path.dirname(__file__), "..", "..", "assets", "demo-moe")


@pytest.fixture(scope="module")
def engine():
    with tokenferry.Engine(MODEL, ranks=2, threads=1) as opened:
        yield opened


def test_drafts_change_no_token(engine):
    prompts = [[5, 6, 7] * 4, [9] * 8]
    params = tokenferry.SamplingParams(temperature=0.8, seed=3, max_tokens=24, ignore_eos=True)
    expected = [r.outputs[0].token_ids for r in engine.generate(prompts, params)]
    with tokenferry.Engine(MODEL, ranks=1, threads=1, draft_tokens=3, draft_ngram_min=1) as drafting:
        assert [r.outputs[0].token_ids for r in drafting.generate(prompts, params)] == expected
    with pytest.raises(tokenferry.ConfigError):
        tokenferry.Engine(MODEL, ranks=1, threads=1, draft_tokens=-1)
    with pytest.raises(tokenferry.ConfigError, match="further tokens"):
        tokenferry.Engine(MODEL, ranks=1, threads=1, draft_tokens=1, draft_method="mtp")


def test_keys_and_values_may_be_kept_narrower(engine):
    prompts = [list(range(40)), [9] * 8]
    params = tokenferry.SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)

    def told(**options):
        with tokenferry.Engine(MODEL, ranks=1, threads=1, **options) as opened:
            return [[step[0].logprob for step in r.outputs[0].logprobs] for r in opened.generate(prompts, params)]

    plain = told(kv_cache_dtype="auto")
    assert told() == plain
    assert told(kv_cache_dtype="int8") != plain
    with pytest.raises(tokenferry.ConfigError, match="kv_type fp4"):
        tokenferry.Engine(MODEL, ranks=1, threads=1, kv_cache_dtype="fp4")


def test_rows_are_rounded_where_asked_for(engine):
    lines = []
    params = tokenferry.SamplingParams(temperature=0, max_tokens=4)
    with tokenferry.Engine(MODEL, ranks=1, threads=1, weights="mxfp4", activations="int8", log=lines.append) as rounded:
        assert len(rounded.generate("12 + 34 =", params)[0].outputs[0].token_ids) == 4
    assert any(line.startswith("activations: ") for line in lines)
    for activations in ("int8", "int4"):  # no weights there that would meet them; no such type
        with pytest.raises(tokenferry.ConfigError, match=f"activations {activations}"):
            tokenferry.Engine(MODEL, ranks=1, threads=1, activations=activations)


def test_slices_of_experts_change_no_token(engine):
    params = tokenferry.SamplingParams(temperature=0, max_tokens=12)
    with tokenferry.Engine(MODEL, tp=2, expert_slices=2, threads=1) as sliced:
        assert sliced.generate("Once upon", params)[0].outputs[0].token_ids == engine.generate("Once upon", params)[0].outputs[0].token_ids
    with pytest.raises(tokenferry.ConfigError, match="slices"):
        tokenferry.Engine(MODEL, tp=2, expert_slices=3)


def test_numerics_are_exact_unless_asked_for():
    lines = []
    params = tokenferry.SamplingParams(temperature=0, max_tokens=4)
    with tokenferry.Engine(MODEL, ranks=1, threads=1, numerics="fast", log=lines.append) as fast:
        assert len(fast.generate("12 + 34 =", params)[0].outputs[0].token_ids) == 4
    assert any(line.startswith("numerics: ") for line in lines)
    with pytest.raises(tokenferry.ConfigError, match="numerics wild"):
        tokenferry.Engine(MODEL, ranks=1, threads=1, numerics="wild")


def test_weights_are_mapped_where_asked_for(engine):
    lines = []
    params = tokenferry.SamplingParams(temperature=0, max_tokens=8)
    with tokenferry.Engine(MODEL, ranks=1, threads=1, load="mapped", log=lines.append) as mapped:
        assert mapped.generate("Once upon", params)[0].outputs[0].token_ids == engine.generate("Once upon", params)[0].outputs[0].token_ids
    assert any("is not packed" in line for line in lines)
    with pytest.raises(tokenferry.ConfigError, match="load carried"):
        tokenferry.Engine(MODEL, ranks=1, threads=1, load="carried")


def test_conversations_are_put_as_the_template_has_them(engine):
    question = [{"role": "user", "content": "12 + 34 ="}]
    params = dict(temperature=0, max_tokens=8)
    ids = engine.encode_chat(question)
    assert len(ids) > len(engine.encode("12 + 34 ="))
    one, = engine.chat(question, params)
    assert one.prompt_token_ids == ids
    assert one.outputs[0].text == engine.generate([ids], params)[0].outputs[0].text
    both = engine.chat([question, question], params)
    assert [r.outputs[0].token_ids for r in both] == [one.outputs[0].token_ids] * 2
    unfinished = question + [{"role": "assistant", "content": "It is"}]
    assert engine.decode(engine.encode_chat(unfinished, continue_final_message=True)).endswith("It is")
    with pytest.raises(tokenferry.ConfigError, match="role"):
        engine.chat([{"content": "?"}])
    with pytest.raises(tokenferry.ConfigError, match="messages.*not JSON serializable"):
        engine.chat([{"role": "user", "content": {1}}])
    with pytest.raises(tokenferry.ConfigError, match='"temperature" is not known here'):
        engine.encode_chat(question, temperature=1)


def test_texts_keep_to_a_form(engine):
    def text(**form):
        params = tokenferry.SamplingParams(temperature=1, seed=1, max_tokens=600, **form)
        return engine.generate("Once upon", params)[0].outputs[0].text

    try:
        number = text(regex="[0-9]{3}")
    except tokenferry.ConfigError as error:
        assert "built without" in str(error)
        pytest.skip("this build has no grammars")
    assert number.isdigit() and len(number) == 3
    assert text(structured_outputs={"choice": ["left", "right"]}) in ("left", "right")
    assert text(ebnf='root ::= "a" "b"') == "ab"
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 1}}, "required": ["n"],
              "additionalProperties": False}
    assert 1 <= json.loads(text(json_schema=schema))["n"] <= 9
    assert 1 <= json.loads(text(structured_outputs={"json": json.dumps(schema)}))["n"] <= 9

    asked = types.SimpleNamespace(json=None, regex="x{2}", disable_any_whitespace=False, _backend=None)  # as vLLM's class
    assert text(structured_outputs=asked) == "xx"
    for form, wrong in ((dict(regex="["), "regex"), (dict(regex="a", ebnf="b"), "exclude"),
                        (dict(json_schema={"type": {1}}), "not JSON serializable"),
                        (dict(structured_outputs={"regex": "a", "flags": 1}), "structured_outputs.flags"),
                        (dict(structured_outputs={"regex": "a", "disable_any_whitespace": True}), "not supported")):
        with pytest.raises(tokenferry.ConfigError, match=wrong):
            text(**form)


def test_texts_and_ids_give_the_same_greedy_tokens(engine):
    text = "12 + 34 ="
    ids = engine.encode(text)
    params = tokenferry.SamplingParams(temperature=0, max_tokens=8)
    from_text, from_ids, from_dict = engine.generate([text, ids, {"prompt_token_ids": ids}], params)
    assert from_text.prompt == text and from_ids.prompt is None
    assert from_text.prompt_token_ids == from_ids.prompt_token_ids == ids
    out = from_text.outputs[0]
    assert out.token_ids == from_ids.outputs[0].token_ids == from_dict.outputs[0].token_ids
    assert "46" in out.text and engine.decode(out.token_ids).strip() == out.text.strip()
    assert out.finish_reason in ("stop", "length") and out.logprobs is None


def test_streams_give_what_generate_gives(engine):
    prompts = ["Once upon a time", "5 + 6 ="]
    params = dict(temperature=0, max_tokens=6, n=2, logprobs=2)
    whole = engine.generate(prompts, params)
    ids = {(p, i): [] for p in range(2) for i in range(2)}
    text = dict.fromkeys(ids, "")
    finished = set()
    with engine.stream(prompts, params) as stream:
        for token in stream:
            key = (token.prompt_index, token.index)
            assert key not in finished
            ids[key].append(token.token_id)
            text[key] += token.text
            assert token.logprobs[0].token_id == token.token_id and len(token.logprobs) == 3
            assert token.logprobs[1].logprob >= token.logprobs[2].logprob
            if token.finish_reason:
                finished.add(key)
    for (p, i), found in ids.items():
        assert found == whole[p].outputs[i].token_ids and text[p, i] == whole[p].outputs[i].text
        assert len(whole[p].outputs[i].logprobs) == len(found)


def test_sampling_parameters_have_an_effect(engine):
    def text(**params):
        return engine.generate("Once upon a time", max_tokens=12, **params)[0].outputs[0]

    assert text(seed=7).token_ids == text(seed=7).token_ids
    greedy = text(temperature=0)
    first = greedy.token_ids[0]
    assert first not in text(temperature=0, suppress_tokens=[first]).token_ids
    assert text(temperature=0, logit_bias={first: -100}).token_ids[0] != first
    stopped = text(temperature=0, stop=greedy.text.split()[1])
    assert stopped.finish_reason == "stop" and stopped.stop_reason == greedy.text.split()[1]
    word = greedy.text.split()[0]
    assert word not in text(temperature=0, bad_words=[word]).text.split()
    kept = text(temperature=0, stop=greedy.text.split()[1], include_stop_str_in_output=True)
    assert kept.text == stopped.text + stopped.stop_reason
    assert text(min_p=1.0, seed=3).token_ids == greedy.token_ids
    assert text(temperature=0, max_new_tokens=3).token_ids == greedy.token_ids[:3]  # SGLang's name


def test_log_probabilities_of_the_prompt(engine):
    ids = engine.encode("12 + 34 = 46")
    (scored,) = engine.generate([ids], temperature=0, max_tokens=1, prompt_logprobs=2, logprobs=0)
    assert len(scored.prompt_logprobs) == len(ids) and scored.prompt_logprobs[0] is None
    for token, found in zip(ids[1:], scored.prompt_logprobs[1:]):
        assert found[0].token_id == token and len(found) == 3 and found[0].logprob <= 0
        assert found[1].logprob >= found[2].logprob
    assert len(scored.outputs[0].logprobs[0]) == 1
    # What follows a prompt is as probable as it is within a longer one.
    answer = engine.generate([ids[:-1]], temperature=0, max_tokens=1, logprobs=0)[0].outputs[0]
    if answer.token_ids[0] == ids[-1]:
        assert answer.logprobs[0][0].logprob == scored.prompt_logprobs[-1][0].logprob
    (one,) = engine.generate([ids[:1]], temperature=0, max_tokens=1, prompt_logprobs=1)
    assert one.prompt_logprobs == [None] and one.outputs[0].logprobs is None


@pytest.mark.parametrize(
    "params, text",
    [(dict(top_p=2.0), "top-p"), (dict(tempreature=1), "tempreature"), (dict(n=0), "0 choices"),
     (dict(stop_token_ids="x"), "stop_token_ids"), (dict(bad_words=[""]), "bad_words"), (dict(min_p=2), "min")],
)
def test_what_cannot_be_is_refused(engine, params, text):
    with pytest.raises(tokenferry.ConfigError, match=text):
        engine.generate("a", **params)


def test_a_missing_checkpoint_is_named():
    with pytest.raises(tokenferry.ModelError, match="nowhere"):
        tokenferry.Engine("/nowhere/at/all")


def test_cancel_and_calls_from_several_threads(engine):
    alone = engine.generate("7 + 8 =", temperature=0, max_tokens=6)[0].outputs[0].token_ids
    found = [None] * 4

    def call(i):
        found[i] = engine.generate("7 + 8 =", temperature=0, max_tokens=6)[0].outputs[0].token_ids

    threads = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    stream = engine.stream("Once upon a time", temperature=0, max_tokens=200, ignore_eos=True)
    next(stream)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    stream.cancel(0)
    assert sum(1 for _ in stream) < 199
    assert found == [alone] * 4


def test_interrupt_ends_a_call(engine):
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        while True:
            engine.generate("Once upon a time", temperature=0, max_tokens=400, ignore_eos=True)
    assert engine.generate("1 + 1 =", temperature=0)[0].outputs[0].text


def test_closed_engines_refuse():
    engine = tokenferry.Engine(MODEL, ranks=1, threads=1)
    engine.close()
    with pytest.raises(tokenferry.Refused) as refused:
        engine.generate("a", max_tokens=1)
    assert refused.value.reason in ("closing", "ended")
