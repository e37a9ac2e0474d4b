"""Generation in this process, on the demo model."""

import os
import signal
import threading

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
