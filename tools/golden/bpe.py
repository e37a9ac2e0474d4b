"""Tokenizers as the families have them, with small vocabularies."""

import json
from collections import Counter
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers, processors, trainers

from .files import write_json
from .texts import CORPUS

# The pre-tokenizer that Qwen checkpoints carry in tokenizer.json.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Those of the other families, which cut before ByteLevel: facts of their tokenizer.json.
LETTERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
O200K_SPLIT = (rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}*{LETTERS[1]}+{ENDING}|[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}+{LETTERS[1]}*{ENDING}"
               rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}")
GLM_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
             rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}")
TEKKEN_SPLIT = (rf"[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}*{LETTERS[1]}+|[^\r\n\p{{L}}\p{{N}}]?{LETTERS[0]}+{LETTERS[1]}*"
                rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}")
QWEN35_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
                rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}")
SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
DEEPSEEK_V3_SPLIT = (SIGNS + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES)

KIMI_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KIMI_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
KIMI_SPLIT = (rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?{KIMI_UPPER}*{KIMI_LOWER}+{ENDING}"
              rf"|[^\r\n\p{{L}}\p{{N}}]?{KIMI_UPPER}+{KIMI_LOWER}*{ENDING}"
              rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}")

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_level_bpe(split: str | None, nfc: bool, vocab: int, text=CORPUS, special=SPECIAL) -> Tokenizer:
    """Byte-level BPE. With `split`, the regex comes first as in Qwen; without, ByteLevel's own (GPT-2)."""
    tok = Tokenizer(models.BPE())
    if nfc:
        tok.normalizer = normalizers.NFC()
    level = dict(add_prefix_space=False, trim_offsets=False, use_regex=split is None)
    if split is None:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(**level)
    else:
        tok.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated"), pre_tokenizers.ByteLevel(**level)])
    tok.post_processor = processors.ByteLevel(**level)
    tok.decoder = decoders.ByteLevel(**level)
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    # Added after training, so that they lie behind the ordinary vocabulary as in Qwen checkpoints.
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    return tok


def save_tokenizer(tok: Tokenizer, path: Path, string_merges: bool, eos: str = SPECIAL[0],
                   kind: str = "Qwen2Tokenizer") -> None:
    """tokenizer.json and tokenizer_config.json. Older files hold merges as "a b", newer as ["a", "b"]."""
    path.mkdir(parents=True, exist_ok=True)
    data = json.loads(tok.to_str())
    if string_merges:
        data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]
        del data["model"]["ignore_merges"]
    write_json(path / "tokenizer.json", data)
    added = {str(t["id"]): {k: t[k] for k in ("content", "lstrip", "normalized", "rstrip", "single_word", "special")}
             for t in data["added_tokens"]}
    write_json(path / "tokenizer_config.json", {
        "add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None,
        "clean_up_tokenization_spaces": False, "eos_token": eos, "errors": "replace",
        "model_max_length": 512, "pad_token": eos, "split_special_tokens": False,
        "tokenizer_class": kind, "unk_token": None})


def sentencepiece_bpe(metaspace: dict | None, vocab: int) -> Tokenizer:
    """BPE of characters with byte fallback, as Mixtral has it: spaces become U+2581, by normalizers in
    older files and by the Metaspace pre-tokenizer in newer ones."""
    first = ["<unk>", "<s>", "</s>"]
    named_bytes = [f"<0x{b:02X}>" for b in range(256)]
    # The 90 most frequent characters. Named, since the trainer alone would break ties as its hash table lies.
    often = Counter("".join(CORPUS).replace(" ", "\u2581"))
    alphabet = sorted(often, key=lambda c: (-often[c], c))[:90]
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=first + named_bytes, initial_alphabet=alphabet, limit_alphabet=90,
        show_progress=False))
    model = json.loads(tok.to_str())["model"]
    tok = Tokenizer(models.BPE(model["vocab"], [tuple(m) for m in model["merges"]], unk_token="<unk>",
                               byte_fallback=True, fuse_unk=True))
    if metaspace is None:
        tok.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tok.pre_tokenizer = pre_tokenizers.Metaspace(**metaspace)
    tok.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                     decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in first + SPECIAL])
    return tok


def split_steps(*patterns: str, digits: bool = False):
    """Several cuts one after the other, then ByteLevel without its own, as DeepSeek and GLM have it."""
    steps = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


SPLITS = {  # the pre-tokenizers of families other than Qwen
    "o200k": split_steps(O200K_SPLIT),  # gpt-oss, Llama 4
    "glm": split_steps(GLM_SPLIT),
    "tekken": split_steps(TEKKEN_SPLIT),  # Mistral
    "qwen35": split_steps(QWEN35_SPLIT),
    "deepseek_v3": split_steps(r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", DEEPSEEK_V3_SPLIT),
    "deepseek_v2": split_steps(
        r"[\r\n]", r"\s?\p{L}+", "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
        "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+", digits=True),
}
