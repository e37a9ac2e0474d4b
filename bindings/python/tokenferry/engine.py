"""A whole model in this process: prompts in, tokens out, without a server."""

import json
from dataclasses import asdict, dataclass, field, fields

from . import _core
from .errors import ConfigError


@dataclass
class SamplingParams:
    """How to continue a prompt; names and defaults are vLLM's.

    max_tokens: of a continuation; None: to the end of the context. (vLLM's default is 16.)
    temperature 0 is greedy; top_k 0 or -1 and top_p 1 cut nothing. seed: None draws one.
    stop: strings that end a continuation, not part of its text; stop_token_ids likewise, for ids.
    logprobs: None, or how many others stand beside each token's own (0 to 20); prompt_logprobs: the
    same for the prompt's tokens.
    n: continuations of each prompt.
    structured_outputs: what the text must match: a dict (or vLLM's StructuredOutputsParams) with one of json (a
    JSON schema), regex, choice, grammar, json_object, structural_tag; SGLang's json_schema, regex and ebnf stand
    for themselves.
    """

    n: int = 1
    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list | None = None
    stop_token_ids: list | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    min_p: float = 0.0
    include_stop_str_in_output: bool = False
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict | None = None
    allowed_token_ids: list | None = None
    suppress_tokens: list | None = None
    bad_words: list | None = None
    structured_outputs: dict | None = None
    json_schema: str | dict | None = None
    regex: str | None = None
    ebnf: str | None = None


_FORMS = ("structured_outputs", "json_schema", "regex", "ebnf")
_SGLANG = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}


def _params(given, options):
    if given is None:
        given = {}
    values = asdict(given) if isinstance(given, SamplingParams) else dict(given)
    values |= options
    values = {_SGLANG.get(name, name): value for name, value in values.items()}
    known = {f.name for f in fields(SamplingParams)}
    for name in values:
        if name not in known:
            raise ConfigError(f"sampling parameter '{name}' is not known; known are {', '.join(sorted(known))}")
    return _with_form(asdict(SamplingParams(**values)))


def _with_form(values):
    """What the text must match, as the one JSON object that the engine reads."""
    given = {name: values.pop(name) for name in _FORMS}
    structured = given["structured_outputs"]
    if structured is not None:
        if not isinstance(structured, dict):
            structured = vars(structured)
        # vLLM keeps notes of its own there.
        given["structured_outputs"] = {n: v for n, v in structured.items() if v is not None and not n.startswith("_")}
    given = {name: value for name, value in given.items() if value is not None}
    return values | {"form": _json(given) if given else None}


def _json(members):
    try:
        return json.dumps(members)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{', '.join(members)}: {error}") from None


@dataclass
class Logprob:
    """ln of a token's probability under the model, before any processor and temperature."""

    token_id: int
    logprob: float


@dataclass
class CompletionOutput:
    """One continuation. finish_reason: 'stop', 'length' or 'cancelled'; stop_reason: the stop string
    that ended it. logprobs: one list a token, the token itself first; None where not asked for."""

    index: int
    text: str
    token_ids: list
    finish_reason: str
    stop_reason: str | None = None
    logprobs: list | None = None


@dataclass
class RequestOutput:
    """A prompt and its continuations. prompt_logprobs: one list a token of the prompt, None for the first,
    which nothing predicts; None where not asked for."""

    prompt: str | None
    prompt_token_ids: list
    outputs: list = field(default_factory=list)
    prompt_logprobs: list | None = None


@dataclass
class TokenEvent:
    """The next token of a running call. text: what the continuation has grown by, may be empty.
    finish_reason: with the last one of its continuation, else None."""

    prompt_index: int
    index: int
    token_id: int
    text: str
    logprobs: list | None
    finish_reason: str | None


def _logprobs(token_id, pair, most=None):
    if pair is None:
        return None
    chosen, others = pair
    return [Logprob(token_id, chosen)] + [Logprob(i, p) for i, p in others[:most]]


class TokenStream:
    """Iterates over TokenEvents as they come. Closing it, or dropping it, cancels what is not done."""

    def __init__(self, stream, n):
        self._stream, self._n = stream, n

    def __iter__(self):
        return self

    def __next__(self):
        token = None if self._stream is None else self._stream.next()
        if token is None:
            raise StopIteration
        choice, token_id, text, logprobs, finish = token
        return TokenEvent(
            choice // self._n, choice % self._n, token_id, text, _logprobs(token_id, logprobs), finish or None
        )

    def cancel(self, prompt_index, index=0):
        """This continuation gets no further token."""
        self._stream.cancel(prompt_index * self._n + index)

    def close(self):
        self._stream = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Engine:
    """Loads a checkpoint directory, or a file .gguf, and runs it on ranks that are threads of this process.

    ranks: that experts are spread over; 0: one for each NUMA node, or `tp`. tp: ranks that share out
    attention and dense layers. expert_slices: ranks that share out each expert's columns; divides tp. experts_device:
    where routed experts are, 'cpu', 'cuda:N' (that GPU's memory, with numerics='fast'), or 'cuda' (each rank has the next one). threads:
    of each rank; 0: cores / ranks. weights: 'f32', 'bf16', 'int8', 'fp8', 'int4' or 'mxfp4'; None: as stored.
    load: 'read', or 'mapped': the weights of a packed checkpoint stay in its file, which programs share.
    activations: 'auto', or 'int8': rows are rounded to 8 bits where weights are GGUF's blocks or mxfp4 (the log says where).
    kv_cache_dtype: keys and values are kept as 'auto' (as activations), 'f32', 'bf16', 'int8' or 'fp8_e4m3'. numerics: 'exact', the same bits on every machine, or 'fast', the machine's
    own dot products of bf16 where it has them (the log says so). backend: how tokens travel. max_context: positions of a sequence;
    0: the model's. draft_tokens: that may come next run beside a text's one token (0: none); the same bytes in fewer steps.
    draft_method: 'ngram', out of the text itself, where its newest draft_ngram_min to draft_ngram_max tokens stand earlier
    in it; 'mtp', by the checkpoint's layer that predicts further tokens. log: takes lines that whoever runs this should read.

    Calls from several threads share the steps. The GIL is free while they wait.
    """

    def __init__(self, model, *, ranks=0, tp=1, expert_slices=1, experts_device="cpu", threads=0, weights=None, load="read", activations="auto",
                 kv_cache_dtype="auto", numerics="exact", backend="pplx", max_context=0, max_tokens_per_step=512, max_sequences_per_rank=16, max_waiting=0,
                 draft_tokens=0, draft_method="ngram", draft_ngram_min=2, draft_ngram_max=8, kv_memory_fraction=0.8, log=None):
        self._generator = _core.Generator(dict(
            model=str(model), ranks=ranks, tp=tp, expert_slices=expert_slices, experts_device=experts_device, threads=threads, weights=weights, load=load,
            activations=activations, kv_cache_dtype=kv_cache_dtype, numerics=numerics, backend=backend,
            max_context=max_context, max_tokens_per_step=max_tokens_per_step,
            max_sequences_per_rank=max_sequences_per_rank, max_waiting=max_waiting,
            draft_tokens=draft_tokens, draft_method=draft_method, draft_ngram_min=draft_ngram_min, draft_ngram_max=draft_ngram_max,
            kv_memory_fraction=kv_memory_fraction, log=log))

    def generate(self, prompts, sampling_params=None, **options):
        """Continues prompts to the end.

        prompts: a text, a list of ids, or a list of texts, lists of ids, and dicts with 'prompt' or
        'prompt_token_ids'. sampling_params: SamplingParams, or a dict; `options` are such, too.
        Returns a list of RequestOutput, in the order of the prompts.
        """
        texts, ids = self._prompts(prompts)
        params = self._with_words(_params(sampling_params, options))
        stream = self._generator.start(ids, params)
        while stream.next() is not None:
            pass
        choices = stream.choices()
        n = params["n"]
        results = []
        for p, (text, prompt_ids) in enumerate(zip(texts, ids)):
            outputs = []
            for index, choice in enumerate(choices[p * n : (p + 1) * n]):
                token_ids, out, finish, matched, logprobs, of_prompt = choice
                pairs = None
                if params["logprobs"] is not None:
                    pairs = [_logprobs(t, pair, params["logprobs"]) for t, pair in zip(token_ids, logprobs)]
                outputs.append(CompletionOutput(index, out, token_ids, finish, matched or None, pairs))
            result = RequestOutput(text, prompt_ids, outputs)
            if params["prompt_logprobs"] is not None:
                result.prompt_logprobs = [None] + [
                    _logprobs(t, pair, params["prompt_logprobs"]) for t, pair in zip(prompt_ids[1:], of_prompt)]
            results.append(result)
        return results

    def chat(self, messages, sampling_params=None, *, tools=None, chat_template_kwargs=None, add_generation_prompt=True,
             continue_final_message=False, **options):
        """generate() for a conversation, or for a list of such: lists of messages, {'role': ..., 'content': ...}.

        The model's chat template makes the prompts, as for POST /v1/chat/completions. tools: what it shows of
        functions, in OpenAI's form; calls of them stand in the text as the model writes them.
        """
        several = len(messages) > 0 and not isinstance(messages[0], dict)
        ids = [
            self.encode_chat(one, tools=tools, chat_template_kwargs=chat_template_kwargs,
                             add_generation_prompt=add_generation_prompt and not continue_final_message,
                             continue_final_message=continue_final_message)
            for one in (messages if several else [messages])
        ]
        return self.generate([{"prompt_token_ids": i} for i in ids], sampling_params, **options)

    def encode_chat(self, messages, **members):
        """The ids of one conversation. members: what else POST /v1/chat/completions has of this, such as tools,
        chat_template_kwargs, reasoning_effort, add_generation_prompt, continue_final_message."""
        members = {name: value for name, value in members.items() if value is not None}
        return self._generator.encode_chat(_json({"messages": list(messages)} | members))

    def stream(self, prompts, sampling_params=None, **options):
        """The same, token by token: a TokenStream."""
        _, ids = self._prompts(prompts)
        params = self._with_words(_params(sampling_params, options))
        return TokenStream(self._generator.start(ids, params), params["n"])

    def encode(self, text):
        """The ids of a text, with the special tokens that the model wants around it."""
        return self._generator.encode(text)

    def decode(self, ids):
        """The text of ids, without special tokens."""
        return self._generator.decode(list(ids))

    @property
    def vocab_size(self):
        return self._generator.vocab

    @property
    def max_context(self):
        """Positions of a sequence: prompt and continuation together."""
        return self._generator.max_context

    def close(self):
        """Ends running calls, which raise Refused from then on, and all threads."""
        self._generator.close()

    shutdown = close

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _with_words(self, params):
        """Bad words as their tokens, with and without a space before them, as vLLM has them."""
        if params["bad_words"] is None:
            return params
        words = []
        for text in params["bad_words"]:
            bare = text.lstrip(" ")
            plain, spaced = self._tokens(bare), self._tokens(" " + bare)
            words.append(plain)
            if plain and spaced[0] != plain[0]:
                words.append(spaced)
        return params | {"bad_words": words}

    def _tokens(self, text):
        """Without the special tokens that begin a text."""
        begin, ids = self.encode(""), self.encode(text)
        return ids[len(begin):] if ids[: len(begin)] == begin else ids

    def _prompts(self, prompts):
        if isinstance(prompts, (str, dict)) or (len(prompts) > 0 and isinstance(prompts[0], int)):
            prompts = [prompts]
        texts, ids = [], []
        for prompt in prompts:
            if isinstance(prompt, dict):
                prompt = prompt.get("prompt_token_ids", prompt.get("prompt"))
            if prompt is None:
                raise ConfigError("a prompt that is a dict has 'prompt' or 'prompt_token_ids'")
            texts.append(prompt if isinstance(prompt, str) else None)
            ids.append(self.encode(prompt) if isinstance(prompt, str) else [int(i) for i in prompt])
        return texts, ids
