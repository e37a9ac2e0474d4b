#!/usr/bin/env python3
"""Golden data for the regular expressions of tokenizers: what Hugging Face's own (Oniguruma) match.

    python tools/make_regex_golden.py [--out tests/data/oniguruma.json]

"characters" are ranges of code points: those that Unicode had assigned in the version that this Python knows (for the
committed file 14.0, as old as the libraries we run on), without private ones and those whose class changed since. "classes" has patterns of one
character: how many of these characters match, and the FNV-1a hash of their code points as 64-bit words. "pieces" has
patterns and texts: what a Split with behavior "isolated" cuts the text into, null where the pattern is none.
"""

import argparse
import json
import unicodedata
from pathlib import Path

from tokenizers import Regex, pre_tokenizers

# Became alphabetic (the first line) or lower case since Unicode 14.0.
CHANGED = {*range(0x363, 0x370), 0xC04, 0xF82, 0xF83, *range(0x1DD3, 0x1DE7), 0x11080, 0x11081,
           0x10FC, *range(0xA7F2, 0xA7F5), 0xAB69}
NAMES = "alnum alpha ascii blank cntrl digit graph lower print punct space upper word xdigit".split()
CLASSES = r"""\w \W \d \D \s \S \h \H . \O \N \p{L} \P{L} \p{^L} \p{Han} \P{Han} \p{^Greek} \p{Lu} \p{Alphabetic}
[\w] [^\w] [\W] [^\W] [\h] [^\h] [\H] [^\H] [\S] [\D] [\Da] [^\s\w] [\W\d] [^\W\d] [\H0] [^\p{Han}] [\p{^Han}a] [\P{Punct}\w]
[^\r\n\p{L}\p{N}] [\p{L}&&[^\p{Han}]] [^\p{L}&&[^\p{Han}]] [\d&&\w&&[^5]] [\w&&\W] [a-z&&[^aeiou]] [a[bc]d] [a[^bc]] [^a[^bc]]
[[[x]]] [[:alpha:][:digit:]_] [^[:punct:]\s] [[:^alnum:]a] [[:^punct:][:digit:]] [a-] [-a] [\-a] [a^] [\^a] [\]a] []a] [^]a] [&a] [a&b]
[\u4e00-\u9fff] [\x41-\x5a] [\x{41}-\x{5a}] [\n-\r] [!-\/] [+--] [a\-z] [\p{Lu}\p{Lt}\p{M}&&[^\p{Han}]]
""".split()
CLASSES += [f"[[:{n}:]]" for n in NAMES] + [f"[[:^{n}:]]" for n in NAMES] + [f"[^[:{n}:]]" for n in NAMES]
CLASSES += [f"\\p{{{n}}}" for n in NAMES] + [f"\\P{{{n.capitalize()}}}" for n in NAMES]
PIECES = [
    (r"\p{N}{1,3}+", "1234567 89"), (r"\p{N}{1,3}", "1234567 89"), (r"a{2}?", "aaaaa"), (r"a{,2}", "aaaaa"),
    (r"a{2}+", "aaaaa"), (r"(?:ab){2}?", "abab"), (r"xa{1,2}+b", "xaaaaab"), (r"a{2,}+a", "aaaa"), (r"x{a}", "x{a}"),
    (r"x{", "x{"), (r"x{,}", "xx{,}"), (r"a{1,2}{2}", "aaaaa"), (r"a{1,2}?", "aaa"), (r"a+?b", "aaab"), (r"a++a", "aaa"),
    (r"[ab]{2}+", "abbab"), (r"\w{1,2}+!", "abcde!"), (r"(a|b){2}+c", "ababcabc"), (r"(?m:.+)", "a\nb"), (r"(?m).+", "a\nb"),
    (r".+", "a\nb"), (r"(?i-m:A.)", "a\nab"), (r"(?im:A.)", "a\nab"), (r"(?s:.)", "a"), (r"(?#c)a", "ba"), (r"(?x: a b )", "cab"),
    (r"^b", "a\nb"), (r"a$", "a\nb"), (r"\bb", "a\u0301b b ab \u00b2b _b"), (r"a\b", "a\u0301a a\u00b2 a_ a! a"), (r"\Bb", "ab b!b"),
    (r"\R", "a\r\nb\u2028c"), (r"\X", "e\u0301a"), (r"[[:foo:]]", "f"), (r"[a", "a"), (r"(a", "a"), (r"(a)|b\1", "abab"),
    (r"(?<n>a)\k<n>", "aab"), (r"a(?=b)|(?<!a)b", "abb"), (r"(?>a+)b", "aab"), (r"\u00e9+", "a\u00e9\u00e9"), (r"\x41+", "bAAb"),
    (r"[\b]", "a\bb"), (r"\e", "a\x1b"), (r"\101", "bA"), (r"[^a-z&&[^aeiou]]+", "helloX"), (r"(?i)[a-c&&[^b]]+", "aBCc"),
    (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
     "I'LL go 12345 times!!\n\n  \u6e21\u8239 na\u00efve\t "),
    (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+|\p{Han}+", "ABC\u6e21\u8239\u0e01d\u3006x"),
]


def sample():
    known = [c for c in range(1, 0x110000)
             if unicodedata.category(chr(c)) not in ("Cn", "Co", "Cs") and c not in CHANGED]
    ranges = []
    for c in known:
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return known, ranges


def split(pattern, text, behavior):
    return pre_tokenizers.Split(Regex(pattern), behavior=behavior).pre_tokenize_str(text)


def matched(pattern, known, text):
    left = bytearray(len(known))
    for _, (begin, end) in split(pattern, text, "removed"):
        left[begin:end] = b"\1" * (end - begin)
    return [c for c, stayed in zip(known, left) if not stayed]


def fnv(code_points):
    value = 0xCBF29CE484222325
    for c in code_points:
        value = (value ^ c) * 0x100000001B3 % 2**64
    return value


def pieces(pattern, text):
    try:
        return [text[begin:end] for _, (begin, end) in split(pattern, text, "isolated")]
    except Exception:  # of tokenizers, which has no other
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "tests" / "data" / "oniguruma.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    known, ranges = sample()
    text = "".join(map(chr, known))
    classes = []
    for pattern in CLASSES:
        found = matched(pattern, known, text)
        classes.append([pattern, len(found), fnv(found)])
    rows = {"unicode": unicodedata.unidata_version, "characters": ranges, "classes": classes,
            "pieces": [[pattern, text, pieces(pattern, text)] for pattern, text in PIECES]}
    body = ",\n".join(f"{json.dumps(name)}: " + (json.dumps(value, separators=(",", ":")) if name in ("unicode", "characters")
                      else "[\n" + ",\n".join(json.dumps(row) for row in value) + "\n]") for name, value in rows.items())
    args.out.write_text("{" + body + "}\n", encoding="utf-8")
    print(f"{len(classes)} classes over {len(known)} characters, {len(PIECES)} texts")


if __name__ == "__main__":
    main()
