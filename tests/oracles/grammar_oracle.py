#!/usr/bin/env python3
"""Our masks of JSON schemas beside llguidance's, and our texts before jsonschema.

    grammar_oracle.py WALKS.json

tests/text/grammar_oracle_test.cpp writes the file: a vocabulary, schemas, and for each of them texts by chance with the
mask before every token. Prints what was compared and exits with 0, or says what differs. What differs on purpose is
named in DESIGNED, and nothing else may.
"""

import json
import re
import sys
from collections import Counter
from typing import NamedTuple

import jsonschema
import llguidance


class Place(NamedTuple):
    """Where two masks differ."""

    text: bytes  # so far
    schema: str
    has_bounds: bool  # some number of the schema has a least or greatest value
    has_limits: bool  # some string of the schema has a greatest length
    has_literals: bool  # it has enum or const


def begins_with(token: bytes, characters: bytes) -> bool:
    return token[:1] in [bytes([c]) for c in characters]


# Tokens of ours that llguidance bans.
WIDER = {
    # JSON allows it as it is; llguidance wants it written as \u007f.
    "DEL in a string": lambda place, token: b"\x7f" in token,
    # -2.0 is the least number that is at least -2, and llguidance writes -2 alone.
    "zeros behind a number that is a limit": lambda place, token: place.has_bounds
    and re.search(rb"\d(\.0*)?$", place.text) is not None
    and re.fullmatch(rb"\.?0*", token) is not None,
}

# Tokens that ours ban and llguidance allows: each takes ways to write a value away, but no value a schema asks for.
NARROWER = {
    # They come as the client wrote them, without blanks and with the shortest escapes.
    "blanks in an enum or const": lambda place, token: place.has_literals and begins_with(token, b" \t\r\n"),
    "other escapes in an enum or const": lambda place, token: place.has_literals
    and place.text.endswith(b"\\")
    and begins_with(token, b"u"),
    # A text of so many characters is counted without taking escapes apart.
    "escapes in a string with a limit": lambda place, token: place.has_limits and begins_with(token, b"\\"),
    # Six digits behind the point are the most that a number between limits has.
    "digits beyond the sixth": lambda place, token: re.search(rb"\.\d{6}$", place.text) is not None
    and begins_with(token, b"0123456789"),
}


class Vocabulary:
    """What LLTokenizer wants to know. Texts become tokens byte by byte: nothing here depends on how."""

    def __init__(self, tokens: list, eos: int) -> None:
        self.eos_token_id = eos
        self.bos_token_id = None
        self.tokens = [bytes.fromhex(t) if t is not None else b"\xff<%d>" % i for i, t in enumerate(tokens)]
        self.special_token_ids = [i for i, t in enumerate(tokens) if t is None]
        self.by_bytes = {t: i for i, t in enumerate(self.tokens)}

    def __call__(self, text: bytes) -> list[int]:
        return [self.by_bytes[bytes([b])] for b in text]


def strict(schema: object) -> object:
    """As ours are read: objects with properties have no others unless the schema says so."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    literal = {name: schema[name] for name in ("enum", "const") if name in schema}
    all_of = {name: strict(value) for name, value in schema.items() if name not in literal}
    if "properties" in all_of:
        all_of["properties"] = {name: strict(value) for name, value in schema["properties"].items()}
        all_of.setdefault("additionalProperties", False)
    return {**all_of, **literal}


def grammar_of(schema: object) -> str:
    """Without forcing, which leaves tokens out of masks that begin what can only come so."""
    lark = '%llguidance {"no_forcing": true}\nstart: %json ' + json.dumps(schema)
    return llguidance.LLMatcher.grammar_from_lark(lark)


def ids(mask: bytes, vocabulary: Vocabulary) -> set[int]:
    return {i for i in range(len(vocabulary.tokens)) if mask[i // 8] >> (i % 8) & 1}


class Comparison:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.tokenizer = llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(vocabulary), n_vocab=len(vocabulary.tokens)
        )
        self.masks = Counter()  # compared, and the same
        self.designed = Counter()
        self.texts = 0

    def mask(self, place: Place, ours: set[int], theirs: set[int]) -> None:
        self.masks["compared"] += 1
        self.masks["same"] += ours == theirs
        for tokens, reasons, word in ((ours - theirs, WIDER, "allow"), (theirs - ours, NARROWER, "ban")):
            for i in sorted(tokens):
                token = self.vocabulary.tokens[i]
                named = [name for name, holds in reasons.items() if holds(place, token)]
                if not named:
                    sys.exit(
                        f"grammar_oracle.py: behind {place.text!r} our masks {word} {token!r}, and llguidance's do "
                        f"not: {place.schema}"
                    )
                self.designed[named[0]] += 1

    def walk(self, schema: object, grammar: str, steps: list) -> None:
        matcher = llguidance.LLMatcher(self.tokenizer, grammar)
        if matcher.is_error():
            sys.exit(f"grammar_oracle.py: llguidance: {matcher.get_error()}: {json.dumps(schema)}")
        shown = json.dumps(schema)
        text = b""
        for step in steps:
            place = Place(
                text,
                shown,
                has_bounds='"number"' in shown and '"minimum"' in shown,
                has_limits='"maxLength"' in shown,
                has_literals='"enum"' in shown or '"const"' in shown,
            )
            ours = ids(bytes.fromhex(step["mask"]), self.vocabulary)
            self.mask(place, ours, ids(matcher.compute_bitmask(), self.vocabulary))
            if step["token"] == self.vocabulary.eos_token_id:
                self.finish(schema, text)
                return
            text += self.vocabulary.tokens[step["token"]]
            if not matcher.consume_token(step["token"]):
                sys.exit(f"grammar_oracle.py: llguidance does not take {text!r}: {shown}")

    def finish(self, schema: object, text: bytes) -> None:
        self.texts += 1
        try:
            jsonschema.validate(json.loads(text), schema)
        except (ValueError, jsonschema.ValidationError) as e:
            sys.exit(f"grammar_oracle.py: {text!r} does not keep to {json.dumps(schema)}: {e}")


def main(path: str) -> None:
    with open(path, encoding="utf-8") as f:
        given = json.load(f)
    comparison = Comparison(Vocabulary(given["tokens"], given["eos"]))
    for case in given["schemas"]:
        schema = strict(case["schema"])
        grammar = grammar_of(schema)
        for steps in case["walks"]:
            comparison.walk(schema, grammar, steps)
    if comparison.texts < len(given["schemas"]):
        sys.exit(f"grammar_oracle.py: only {comparison.texts} texts came to an end")
    print(
        f"{comparison.masks['compared']} masks, {comparison.masks['same']} of them the same; "
        f"{comparison.texts} texts keep to their schemas; tokens that differ by design: {dict(comparison.designed)}"
    )


main(sys.argv[1])
