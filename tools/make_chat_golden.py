#!/usr/bin/env python3
"""Golden data for chat templates: transformers' own answers, through Jinja.

    python tools/make_chat_golden.py [--out tests/data/chat_templates]

Reads the templates DIR/*.jinja, which are ours, written in the style of the supported families: with
the constructs that those checkpoints' templates use, not their texts. For each it renders the
conversations below, which go to DIR/cases.json as
    {"messages", "tools", "extra", "add_generation_prompt"}
and writes DIR/<name>.json: the prompts, null where the template refuses or fails. expressions.json holds
single expressions over values.json with what Jinja prints for them ("error" where it fails). The clock
stands still at NOW (UTC).
"""

import argparse
import datetime
import json
import os
import time
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils

NOW = 1754000000
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a place",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "Town, e.g. Zürich"},
        "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
        "days": {"type": "array", "items": {"type": "integer"}},
        "where": {"oneOf": [{"type": "string"}, {"type": "number"}], "nullable": True}},
        "required": ["place"]}}}
SUM = {"type": "function", "function": {
    "name": "sum", "description": "Adds \"numbers\" <&>",
    "parameters": {"type": "object", "properties": {"xs": {"type": "array", "items": {"type": "number"}},
                                                    "precise": {"type": "boolean", "default": False}},
                   "required": ["xs"]}}}
NOTHING = {"type": "function", "function": {"name": "ping", "description": "", "parameters": {}}}

SYSTEM = {"role": "system", "content": "You are a ferryman.\nBe brief. "}
USER = {"role": "user", "content": "  Hello 渡船 👋\n"}
ANSWER = {"role": "assistant", "content": "Good day."}
AGAIN = {"role": "user", "content": "What is 2+2?"}
THOUGHT = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nFour"}
REASONED = {"role": "assistant", "content": "Four", "reasoning_content": "Two and two.\n"}
CALL = {"role": "assistant", "content": None, "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": {
        "place": "Zürich", "days": [1, 2.5, -3], "deep": {"a": None, "b": True}}}}]}
TWO_CALLS = {"role": "assistant", "content": "Let me see.", "tool_calls": [
    {"id": "functions.get_weather:0", "type": "function",
     "function": {"name": "get_weather", "arguments": {"place": "Bern"}}},
    {"id": "functions.sum:1", "type": "function", "function": {"name": "sum", "arguments": {"xs": [1e20, 0.1]}}}]}
TEXT_CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"place\": \"Bern\"}"}}]}
RESULT = {"role": "tool", "tool_call_id": "call_1", "name": "get_weather", "content": "{\"temperature\": 21.5}"}
RESULT_2 = {"role": "tool", "tool_call_id": "functions.sum:1", "name": "sum", "content": {"sum": 1, "ok": True}}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image", "image": "x"},
                                     {"type": "text", "text": "a picture"}]}

CONVERSATIONS = [
    [USER],
    [SYSTEM, USER],
    [USER, ANSWER, AGAIN],
    [SYSTEM, USER, ANSWER, AGAIN],
    [SYSTEM, USER, THOUGHT, AGAIN],
    [USER, REASONED, AGAIN],
    [USER, REASONED],
    [SYSTEM, USER, CALL, RESULT],
    [USER, CALL, RESULT, ANSWER, AGAIN, TWO_CALLS, RESULT, RESULT_2],
    [USER, TEXT_CALL, RESULT],
    [PARTS],
    [SYSTEM, PARTS, ANSWER],
    [USER, AGAIN],
    [{"role": "developer", "content": "Speak German."}, USER],
    [{"role": "user", "content": "<|im_start|>system\n{{ 1 + 1 }} {% raw %} \\ \" ' &lt; \u2028 \x7f"}],
    [{"role": "user", "content": ""}],
    [{"role": "narrator", "content": "Once upon a time"}],
    [SYSTEM],
    [{"role": "user"}],
    [],
]
EXTRAS = [{}, {"enable_thinking": False}, {"enable_thinking": True}, {"reasoning_effort": "high"},
          {"thinking": True, "model_identity": "You are Tokenferry."}, {"date_string": "1 April 2025"}]


def cases():
    """Every conversation plainly; tools and extras with those that show a difference."""
    for messages in CONVERSATIONS:
        for prompt in (True, False):
            yield dict(messages=messages, tools=None, extra={}, add_generation_prompt=prompt)
    for i in (0, 1, 4, 7, 8, 9):
        for tools in ([WEATHER], [SUM, NOTHING, WEATHER]):
            yield dict(messages=CONVERSATIONS[i], tools=tools, extra={}, add_generation_prompt=True)
    for i in (1, 4, 5):
        for extra in EXTRAS[1:]:
            yield dict(messages=CONVERSATIONS[i], tools=None, extra=extra, add_generation_prompt=True)


def render(template: str, case: dict) -> str | None:
    try:
        rendered = chat_template_utils.render_jinja_template(
            conversations=[json.loads(json.dumps(case["messages"]))], tools=case["tools"], chat_template=template,
            add_generation_prompt=case["add_generation_prompt"], **{**TOKENS, **case["extra"]})
        return rendered[0][0]
    except (jinja2.exceptions.TemplateError, TypeError, ValueError, KeyError):
        return None


# What each of these prints, or that it fails. `v` is VALUES.
VALUES = {"none": None, "yes": True, "no": False, "i": 7, "neg": -3, "f": 2.5, "s": "Hällo Wörld", "e": "",
          "l": [3, 1, 2], "words": ["b", "A", "c", "a"], "d": {"b": 1, "a": [1, 2], "items": "x", "c": None},
          "rows": [{"n": "x", "v": 1, "on": True}, {"n": "y", "v": 3}, {"n": "z", "v": 2, "on": False}],
          "q": "it's \"quoted\" \\ \n\t\u00e9\u200b\U0001f600\x01", "sp": " \t a b  c \n", "csv": "a,b,,c"}
EXPRESSIONS = """
v.i + 1 | v.i - 10 | v.i * 2.0 | v.i / 2 | v.neg // 2 | v.neg % 5 | 7 % -3 | -7 // 2 | 7.5 // 2 | 7.5 % -2 | 1 / 0 | 5 // 0
1e16 ~ ' ' ~ 1e15 ~ ' ' ~ 0.1 ~ ' ' ~ 1e-5 ~ ' ' ~ 0.0001 ~ ' ' ~ 1.5e300 ~ ' ' ~ 100.0 ~ ' ' ~ -0.0
0x1F + 0b11 + 0o17 + 1_000 | 9223372036854775807 | -v.f | +v.i | - v.s
'a' 'b' "c" | 'a' ~ 1 ~ none ~ true ~ [1] | 'a' + 'b' | 'a' + 1 | [1] + [2] | (1, 2) + (3,) | 'ab' * 3 | 2 * [1, 'x'] | 'x' * -1
'\\x41\\u00e9\\U0001F600\\n\\t\\\\\\'\\"\\q\\101' | "it's" | 'tab\tin'
v.none | v.yes | v.no | v.f | v.l | v.d | v.rows | v.q | [v.q] | [v.s, v.none, v.yes, 1.0] | (1,) | () | (1, 'a') | {} | []
v.missing | v.missing.x | v.missing is defined | v.missing ~ 'x' | missing | missing.x | missing + 1 | missing | length
v['s'] | v['missing'] | v.l[0] | v.l[-1] | v.l[5] | v.l.0 | v.s[1] | v.s[-1] | v.s[99] | v['l'][1:] | v.s[1:4] | v.s[::-1]
v.s[-3:] | v.s[:-3] | v.l[::-1] | v.l[::2] | v.l[5:] | v.l[-9:9] | v.l[2:0:-1] | v.l[::0] | v.d[1:] | v.s[::-2] | v.none[1:]
v.d.items is defined | v.d['items'] | v.d.items() | list | v.d.keys() | list | v.d.values() | list | v.d.get('a') | v.d.get('zz') | v.d.get('zz', 5) | v.d.update
v.rows[0]['items'] is defined | v.rows[0].items is defined | v.rows[0]['values'] is defined | v.l.index(2) | v.l.count(1) | v.l.index(9)
v.i == 7 | v.i == 7.0 | v.yes == 1 | v.none == none | v.l == [3, 1, 2] | (1,) == [1] | v.d == v.d | 'a' < 'b' | 1 < 'a' | 1 < 2 < 3 | 1 < 3 < 2
1 != 2 | [1, 2] < [1, 3] | none < 1 | 'a' in v.words | 'z' not in v.words | 'äll' in v.s | 1 in v.s | 'b' in v.d | 'x' in none | 1 in missing | '' in 'a'
not v.yes | not v.e | v.e or 'x' | v.i and v.s | none or false | 1 and 0 or 5 | not not 1 | not 1 == 2 | (not 1) == 2
'y' if v.yes else 'n' | 'y' if v.no | 'a' if v.no else 'b' if v.no else 'c' | ('a' if v.no) is defined
v.s | upper ~ v.s | lower | v.s.upper() | v.s.lower() | 'straße'.upper() | 'hello wORLD-foo (bar)' | title | 'hello wORLD-foo' | capitalize | "they're bill's".title()
v.sp | trim ~ '|' | v.sp.strip() ~ '|' | v.sp.lstrip() ~ '|' | v.sp.rstrip() ~ '|' | 'xxaxx'.strip('x') | 'xyayx' | trim('xy') | 'éaé'.strip('é')
v.sp.split() | v.csv.split(',') | v.csv.split(',', 1) | v.csv.rsplit(',', 1) | v.sp.split(none, 1) | v.sp.rsplit(none, 1) | 'a b '.split(none, 1) | v.csv.split('') | ''.split() | ''.split(',') | 'a--b'.split('--')[-1]
'a\nb\r\nc\n'.splitlines() | v.s.startswith('H') | v.s.startswith(('x', 'H')) | v.s.endswith('rld') | v.s.startswith(1) | 'abc'.removeprefix('a') | 'abc'.removesuffix('c') | 'abc'.removeprefix('x')
v.s.replace('l', 'LL') | v.s.replace('l', '', 1) | 'aaa' | replace('a', 'b', 2) | 'ab'.replace('', '-') | 12 | replace(1, 'x') | v.s.find('W') | v.s.find('zz') | v.s.rfind('l') | v.s.count('l') | ','.join(['a', 'b']) | ','.join([1])
v.words | join(', ') | v.l | join | v.rows | join('-', attribute='n') | v.s | length | v.l | length | v.d | length | 5 | length | v.l | count | v.rows | map('upper') | list
v.l | first | v.l | last | [] | first | v.s | first | v.s | last | v.d | first | v.d | list | v.s[:3] | list | v.l | sort | v.words | sort | v.words | sort(case_sensitive=true) | v.words | sort(reverse=true) | v.rows | sort(attribute='v') | map(attribute='n') | join
[1, 'a'] | sort | v.d | dictsort | v.d | items | list | missing | items | list | 5 | items | list | v.l | min | v.l | max | v.words | min | [] | max | v.l | sum | v.rows | sum(attribute='v') | v.l | reverse | list | v.s | reverse
['a', 'A', 'b', 'a'] | unique | list | v.rows | map(attribute='n') | list | v.rows | map(attribute='on', default='?') | list | v.words | map('upper') | list | v.rows | selectattr('on') | list | v.rows | rejectattr('on') | map(attribute='n') | list
v.rows | selectattr('v', 'gt', 1) | map(attribute='n') | join(',') | v.rows | selectattr('on', 'defined') | list | length | v.l | select('odd') | list | v.l | reject('odd') | list | v.l | select | list | v.rows | selectattr('n', 'equalto', 'y') | first
(v.l | select('gt', 9)) and 'true' | (v.l | select('gt', 9) | list) and 'true' | v.l | select('odd') | length
v.d | tojson | v.q | tojson | v.q | tojson(ensure_ascii=true) | v.rows | tojson(indent=2) | {} | tojson(indent=2) | [] | tojson | v.d | tojson(separators=(',', ':')) | v.d | tojson(sort_keys=true) | (1, [2.0, 1e30, none]) | tojson | missing | tojson | v.d | tojson(indent='--') | {'a': {'b': []}} | tojson(indent=1, separators=(' ;', '='))
'a\n\nb\n' | indent | 'a\nb' | indent(2, true) | 'a\n\nb' | indent(width=2, blank=true) | 'a\nb' | indent('> ') | 5 | indent | '' | indent(2, true)
'%s' | format(v.s) | '%s=%s 5%% ü' | format(1, v.l) | '%d' | format(3.9) | '%d' | format(true) | '%d' | format(-7) | '%s' | format | '%s' | format(1, 2) | 'abc' | format | 'abc' | format(1) | '%s' | format(missing) | '%s|%s' | format(v.none, v.d) | '%d' | format('x') | '%d' | format(missing) | '%' | format(1) | v.i | format
missing | default('x') | v.e | default('x') | v.e | default('x', true) | v.none | d('x') | v.none | d('x', boolean=true) | missing | default
'42' | int | '4.9' | int | 'x' | int | 'x' | int(5) | 3.9 | int | -3.9 | int | true | int | ' 7 ' | int | '1_0' | int | '3.5' | float | 'x' | float | 3 | float | none | int | missing | int
2.5 | round | 3.5 | round | 2.345 | round(2) | 2.31 | round(1, 'ceil') | -2.35 | round(1, 'floor') | 5 | round | -3 | abs | 2.5 | abs | 5 | string | none | string | v.l | string
v.i is number | v.s is number | v.yes is number | v.yes is integer | v.i is integer | v.f is float | v.s is string | v.d is mapping | v.l is mapping | v.l is iterable | v.s is iterable | v.i is iterable | missing is iterable | v.l is sequence | v.s is sequence | v.d is sequence | v.i is sequence
v.none is none | missing is none | v.none is not none | v.i is odd | v.i is even | v.i is divisibleby 7 | v.i is divisibleby(2) | v.yes is true | v.no is false | 1 is true | v.yes is boolean | v.i is eq 7 | v.i is in [7, 8] | v.i is not in [7] | v.s is upper | 'ABC' is upper | 'abc' is lower | '1' is lower | range is callable | v.i is sameas 7 | none is sameas none | v.i is gt 5 and v.i is lt 9 | 'upper' is filter | 'nope' is filter | missing is undefined
range(3) | list | range(1, 4) | list | range(5, 0, -2) | list | range(0) | list | range(200000) | range(1, 2, 0) | dict(a=1, b='x') | dict({'a': 1}, b=2) | namespace(a=1).a | namespace(a=1).b is defined
strftime_now('%Y-%m-%d %H:%M') | strftime_now('%d %b %Y') | strftime_now('') | raise_exception('no') | {'a': 1, 'a': 2} | {'x': [1, {'y': 'z'}]} | [[1, [2, [3]]]] | 'a' ~ missing ~ none
(1 if true else 2) + 3 | -2 | abs | v.l | length > 2 | 'a,b' .split(',')[1] | v . i | v['d']['a'][1] | [1, 2, 3,] | {'a': 1,} | 1, 2 | v.l[v.i - 6] | not missing | 5 is number is defined
v.s.encode is defined | 'x' is string and 'y' is string | 'A' < 'a' | 3 in (1, 2, 3) | 'k' in {'k': 1} | true + true | true == 'true' | 0 == false | '' == none | none == missing | missing == missing2
2 ** 3 | 2 ** -1 | 2 ** 0.5 | (-1) ** 1000001 | -2 ** 2 | 2 ** 3 ** 2 | 0 ** -1 | 'a' ** 2 | 0 ** 0 | 2 * 3 ** 2
none | select | list | none | selectattr('a', 'equalto', 'x') | list | length | none | reject | list | none | rejectattr('a') | list | none | map('upper') | list | none | map(attribute='a') | list | false | map('upper') | list | 0 | select('odd') | list | missing | selectattr('a') | list | missing | map('nope') | list
{0: 'a', 512: 'b'} | {0: 'a', 512: 'b'}[512] | {3: 1, 1: 2} | dictsort | {3: 'x', '3': 'y'}['3'] | {3: 'x', '3': 'y'}[3] | 3 in {3: 1} | '3' in {3: 1} | {1: 2}.get(1) | {1: 2}.get(2, 'z') | {2: 1, 1: 2} | tojson | {2: 1, 1: 2} | tojson(sort_keys=true) | {2: 1, 'a': 2} | tojson(sort_keys=true) | {1: 2}.items() | list | {1: 2} | list | {1: 2} == {1: 2} | {1: 2} == {'1': 2} | {-1: 'm'}[-1] | {7: 'seven'}[v.i] | {1: 2} | length | {1: 2}.keys() | list | {1: 'a', 1: 'b'} | {'a': 1, 2: 'b'} | string | {10: 'x', 9: 'y'} | dictsort(reverse=true) | {1: {2: 3}}[1][2] | {1: 2}[3] is defined | {1: 2}['1'] is defined
'{} {}'.format(1, 'b') | '{1}{0}'.format('a', 'b') | '{a}-{b}'.format(a=1, b=v.none) | '{{}}'.format() | '{} {0}'.format(1) | '{}'.format() | '{x}'.format(y=1) | '{0[a]} {0[b]}'.format(v.d) | '{0[1]}'.format(v.l) | '{!r} {!s}'.format('x', 'y') | '{:5}|{:<5}|{:>5}|{:^5}'.format('a', 'b', 'c', 'd') | '{:5}|{:05d}|{:+d}|{:<4}|{: }'.format(1, -2, 3, 4, 5) | '{:.2f}|{:8.3f}|{:e}|{:g}|{:.0f}'.format(1.005, 2.5, 12345.678, 0.0001, 2.5) | '{:.3}'.format('abcdef') | '{:*^7}'.format('ü') | '{:ü>4}'.format('x') | '{'.format() | '}'.format() | '{:d}'.format('x') | '{:d}'.format(2.5) | '{:s}'.format(1) | '{:f}'.format(2) | '{} {} {}'.format(true, 2.0, [1, 'a']) | '{:>10}'.format(none) | '{}'.format(missing) | 'ab{}'.format('c', 'd') | '{:5}'.format([1]) | '{:5}'.format(true) | '{:=+6d}'.format(3) | '{:06.1f}'.format(-2.25) | '{0.a}'.format(v.d)
none | list | none | join | none | first | none | last | none | length | none | sort | none | unique | list | none | min | none | sum | none | reverse | list | none | items | list | none | dictsort | none | trim | none | upper | none | tojson | none | string | none | default('x') | none | int | none | float | none | replace('N', 'x') | none | abs | 5 | map('upper') | list
"""


def expressions() -> list[dict]:
    rows = []
    for line in EXPRESSIONS.strip().splitlines():
        for expression in split_expressions(line):
            row = {"expression": expression}
            try:
                compiled = chat_template_utils._compile_jinja_template("{{ " + expression + " }}")
                row["printed"] = compiled.render(v=json.loads(json.dumps(VALUES)))
            except Exception:  # whatever Python raises, it fails
                row["error"] = True
            rows.append(row)
    return rows


def split_expressions(line: str) -> list[str]:
    """At each ` | ` that no filter follows; filters have names and are followed by ( or | or the end."""
    names = set(chat_template_utils._compile_jinja_template("").environment.filters)
    out, parts = [], line.split(" | ")
    for part in parts:
        word = part.split("(")[0].split(" ")[0]
        if out and word in names and (part == word or part[len(word)] in "( "):
            out[-1] += " | " + part
        else:
            out.append(part)
    return out


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(NOW, tz)


def write(path: Path, rows: list) -> None:
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "tests" / "data" / "chat_templates"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    os.environ["TZ"] = "UTC"
    time.tzset()
    chat_template_utils.datetime = Clock
    write(args.out / "cases.json", list(cases()))
    for path in sorted(args.out.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        rows = [render(template, case) for case in cases()]
        write(path.with_suffix(".json"), rows)
        print(f"{path.stem}: {len(rows)} prompts, {sum(r is None for r in rows)} refused")
    rows = expressions()
    write(args.out / "expressions.json", rows)
    (args.out / "values.json").write_text(json.dumps(VALUES) + "\n", encoding="utf-8")
    print(f"expressions: {len(rows)}, {sum('error' in r for r in rows)} fail")


if __name__ == "__main__":
    main()
