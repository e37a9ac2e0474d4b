#!/usr/bin/env python3
"""Pins the C ABI: tests/c/abi/ferry.xml is what libabigail reads from the public C headers.

    tools/c_abi.py check [--headers DIR]
    tools/c_abi.py write [--headers DIR]

`check` compares the headers with the file: what programs that were built before rely on must be as it was, and what is
new must be an addition. A break is printed by abidiff, and the status is 1. An addition passes and says that the file
should be renewed; `write` renews it (docs/c_api.md, "The ABI"). Status 77: abidiff (Debian's abigail-tools) is not there.

No library is built for it. A C file with an empty body for every function of the headers is compiled with debugging
information, which takes a moment; with a variable of every enumeration and one for every struct, because most of them
are known only as an int32_t or through a void*; and with the magic numbers as enumerators. That libferry.so has these
functions, tools/check_exports.py says.

A struct that says its size may have grown at its end: it is compared as far as the file has it.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PINNED = ROOT / "tests/c/abi/ferry.xml"

FUNCTION = re.compile(r"^FERRY_API\s+([^;{(]*?\b\w+\s*\([^;{]*?\))\s*;", re.MULTILINE)
ENUM = re.compile(r"\btypedef enum (\w+)")
STRUCT = re.compile(r"\btypedef struct (\w+) \{")
MAGIC = re.compile(r"^#define (FERRY_\w+_MAGIC) ", re.MULTILINE)


def unit(headers: Path) -> str:
    """The C file."""
    files = sorted((headers / "ferry/c").glob("*.h"))
    text = "\n".join(file.read_text() for file in files)
    lines = ['#include "ferry/ferry.h"', "#define SHOWN __attribute__((visibility(\"default\")))"]
    lines += [f"SHOWN {function} {{ __builtin_trap(); }}" for function in FUNCTION.findall(text)]
    lines += [f"SHOWN enum {name} abi_{name};" for name in ENUM.findall(text)]
    lines += [f"SHOWN struct {name}* abi_{name};" for name in STRUCT.findall(text)]
    magic = ", ".join(f"abi_{name} = {name}" for name in MAGIC.findall(text))
    lines.append(f"SHOWN enum abi_magic {{ {magic} }} abi_magic_numbers;")
    return "\n".join(lines) + "\n"


def describe(headers: Path, target: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ferry_abi.c").write_text(unit(headers))
        subprocess.run(["cc", "-std=c99", "-g", "-O0", "-shared", "-fPIC", "-fvisibility=hidden", f"-I{headers.resolve()}",
                        "ferry_abi.c", "-o", "libferry_abi.so"], cwd=folder, check=True)
        subprocess.run(["abidw", "--no-show-locs", "--no-corpus-path", "--no-comp-dir-path", "--no-architecture", "--type-id-style", "hash",
                        "--out-file", target, folder / "libferry_abi.so"], check=True)
    # A third of it says nothing.
    lines = [line.strip().replace(" visibility='default'", "") for line in target.read_text().splitlines()]
    target.write_text("\n".join(lines) + "\n")


def structs(tree: xml.ElementTree) -> dict[str, xml.Element]:
    return {node.get("name"): node for node in tree.iter("class-decl") if node.find("data-member") is not None}


def members(struct: xml.Element) -> list[str]:
    return [variable.get("name") for variable in struct.iterfind("data-member/var-decl")]


def cut(described: Path, pinned: Path) -> bool:
    """Takes from structs with a head what they have grown by; whether there was any."""
    tree = xml.parse(described)
    before = structs(xml.parse(pinned))
    found = False
    for name, struct in structs(tree).items():
        old = before.get(name)
        if old is None or members(old)[:2] != ["size", "magic"]:
            continue
        surplus = struct.findall("data-member")[len(members(old)):]
        for member in surplus:
            struct.remove(member)
        if surplus:
            found = True
            struct.set("size-in-bits", old.get("size-in-bits"))
    tree.write(described)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["check", "write"])
    parser.add_argument("--headers", type=Path, default=ROOT / "include")
    options = parser.parse_args()
    if not (shutil.which("abidw") and shutil.which("abidiff")):
        print("c_abi: abidw and abidiff are not here; scripts/setup.sh installs them (abigail-tools)")
        return 77
    if options.what == "write":
        PINNED.parent.mkdir(exist_ok=True)
        describe(options.headers, PINNED)
        return 0
    with tempfile.TemporaryDirectory() as name:
        now = Path(name) / "now.xml"
        describe(options.headers, now)
        same = subprocess.run(["abidiff", PINNED, now], capture_output=True).returncode == 0
        grown = cut(now, PINNED)
        broken = subprocess.run(["abidiff", "--no-added-syms", PINNED, now], capture_output=True, text=True)
    if broken.returncode:
        print(broken.stdout + broken.stderr + "c_abi: programs that were built before do not run with this; "
              "see docs/c_api.md, \"The ABI\"")
        return 1
    print("c_abi: as described" if same and not grown else
          "c_abi: there are additions; renew the description with tools/c_abi.py write")
    return 0


if __name__ == "__main__":
    sys.exit(main())
