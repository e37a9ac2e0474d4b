"""Tokenizers with what Hugging Face's library, or tiktoken, makes of the texts."""

import base64
from pathlib import Path

import tiktoken
from tokenizers import AddedToken, Tokenizer

from .bpe import KIMI_SPLIT, QWEN_SPLIT, SPECIAL, SPLITS, byte_level_bpe, save_tokenizer, sentencepiece_bpe
from .files import write_json
from .texts import TRICKY

NOT_SPECIAL = "<tool_call>"


def tokenizer_kinds() -> dict:
    """name -> (tokenizer, merges as strings). All but the first two are small: what differs is how they cut."""
    kinds = {"qwen": (byte_level_bpe(QWEN_SPLIT, True, 1200), True),
             "gpt2": (byte_level_bpe(None, False, 1200), False),
             "mixtral": (sentencepiece_bpe(None, 700), True),
             "metaspace": (sentencepiece_bpe(dict(prepend_scheme="first", split=True), 700), False)}
    for name, steps in SPLITS.items():
        tok = byte_level_bpe(QWEN_SPLIT, name == "qwen35", 700)
        tok.pre_tokenizer = steps
        kinds[name] = (tok, False)
    return kinds


def golden_tokenizers(out: Path) -> None:
    for name, (tok, string_merges) in tokenizer_kinds().items():
        tok.add_tokens([AddedToken(NOT_SPECIAL, special=False, normalized=False)])
        path = out / f"tokenizer_{name}"
        save_tokenizer(tok, path, string_merges, kind="Qwen2Tokenizer" if name == "qwen" else "GPT2Tokenizer")
        tok = Tokenizer.from_file(str(path / "tokenizer.json"))
        characters = not any(t.startswith("\u0120") for t in tok.get_vocab())
        rows, cuts = [], []
        for text in TRICKY:
            ids = tok.encode(text, add_special_tokens=False).ids
            rows.append({"text": text, "ids": ids, "decoded": tok.decode(ids, skip_special_tokens=False)})
            # A stream shows text while ids still arrive: every prefix, also those inside a character.
            if 2 <= len(ids) <= 12 and any(ord(c) > 0x7F for c in text):
                cuts += [{"ids": ids[a:b], "decoded": tok.decode(ids[a:b], skip_special_tokens=False)}
                         for a, b in [(0, 1), (1, len(ids)), (0, len(ids) - 1)]]
        # ByteFallback counts the bytes of what is no character, ByteLevel its parts, as we do everywhere.
        cuts = [c for c in cuts if not characters or "\ufffd" not in c["decoded"]]
        write_json(path / "golden.json", rows, compact=True)
        write_json(path / "decode.json", cuts, compact=True)
        print(f"tokenizer_{name}: vocab {tok.get_vocab_size()}, {len(rows)} texts, {len(cuts)} slices")
    golden_tiktoken(out / "tokenizer_kimi")


def golden_tiktoken(path: Path) -> None:
    """A tiktoken file, as Kimi-K2 has it, and what the tiktoken package makes of it."""
    trained = byte_level_bpe(None, False, 700)
    letters = {letter: byte for byte, letter in bytes_to_letters().items()}
    special = set(SPECIAL)
    tokens = sorted((i, t) for t, i in trained.get_vocab().items() if t not in special)
    ranks = {bytes(letters[c] for c in t): i for i, (_, t) in enumerate(tokens)}
    path.mkdir(parents=True, exist_ok=True)
    (path / "tiktoken.model").write_bytes(
        b"".join(base64.b64encode(t) + b" " + str(i).encode() + b"\n" for t, i in ranks.items()))
    byte_letters = {byte: letter for letter, byte in letters.items()}
    written = {t: "".join(byte_letters[b] for b in t) for t in ranks}
    pairs = [" ".join(written[part] for part in halves(ranks, t)) for t in ranks if len(t) > 1]
    write_json(path / "byte_pairs.json", {"tokens": [*written.values(), *SPECIAL], "merges": pairs})
    named = {len(ranks) + i: s for i, s in enumerate(SPECIAL)}
    write_json(path / "tokenizer_config.json", {
        "added_tokens_decoder": {str(i): {"content": s, "special": True} for i, s in named.items()},
        "eos_token": SPECIAL[0], "tokenizer_class": "TikTokenTokenizer"})
    encoding = tiktoken.Encoding("kimi", pat_str=KIMI_SPLIT, mergeable_ranks=ranks,
                                 special_tokens={s: i for i, s in named.items()})
    rows, cuts = [], []
    for text in TRICKY:
        ids = encoding.encode(text, allowed_special="all")
        rows.append({"text": text, "ids": ids, "decoded": encoding.decode(ids)})
        if 2 <= len(ids) <= 12 and any(ord(c) > 0x7F for c in text):
            cuts += [{"ids": ids[a:b], "decoded": encoding.decode(ids[a:b])} for a, b in [(0, 1), (1, len(ids))]]
    write_json(path / "golden.json", rows, compact=True)
    write_json(path / "decode.json", cuts, compact=True)
    print(f"{path.name}: vocab {encoding.n_vocab}, {len(rows)} texts, {len(cuts)} slices")


def halves(ranks: dict[bytes, int], token: bytes) -> list[bytes]:
    """The two tokens that become this one, when those of lower ranks have been merged: what converters to GGUF write."""
    parts = [bytes([b]) for b in token]
    while len(parts) > 2:
        at = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], len(ranks)))
        parts[at:at + 2] = [parts[at] + parts[at + 1]]
    return parts


def bytes_to_letters() -> dict[int, str]:
    """Byte-level BPE's alphabet: printable Latin-1 as itself, the rest from U+0100 on."""
    itself = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in itself]
    return {**{b: chr(b) for b in itself}, **{b: chr(0x100 + i) for i, b in enumerate(rest)}}
