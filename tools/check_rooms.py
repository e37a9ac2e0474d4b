#!/usr/bin/env python3
"""Checks that rooms include only what they may, and that third-party headers stay in .cpp files.

    tools/check_rooms.py [ROOT]

A room may include itself and the rooms below it (docs/design.md, "Rooms"). A header may include the
standard library, our own headers, and the few third-party headers allowed here; whatever else a room
builds on is its own affair and stays in its .cpp files, so that no user of the room needs it.
"""

import re
import sys
from pathlib import Path

# From the bottom up; each names the rooms right below it and with them all that those may include.
BELOW = {
    "ferry/core": [],
    "ferry/kernels": ["ferry/core"],
    "ferry/transport": ["ferry/core"],
    "ferry/compute": ["ferry/kernels", "ferry/transport"],
    "ferry/exchange": ["ferry/kernels", "ferry/transport"],
    "ferry/moe": ["ferry/compute", "ferry/exchange"],
    "ferry/balance": ["ferry/moe"],
    "ferry/sim": ["ferry/balance"],
    "ferry/checkpoint": ["ferry/compute"],
    "ferry/text": ["ferry/checkpoint"],
    "ferry/state": ["ferry/kernels"],
    "ferry/model": ["ferry/balance", "ferry/checkpoint", "ferry/state", "ferry/text"],
    "ferry/engine": ["ferry/model"],
    "ferry/runtime": ["ferry/engine"],
    "ferry/server": ["ferry/runtime"],
    "ferry/c": ["ferry/runtime"],
}


# Whose each public header (include/ferry) is: who may include that room may include it as "ferry/x.h".
# It may itself include nothing but public headers, of its own room or below, and the standard library.
PUBLIC = {
    "ferry/runtime": ["generation_settings", "generator", "refused"],
    "ferry/engine": ["logits_processor", "logprobs", "sampling_options"],
    "ferry/text": ["grammar_text"],
    "ferry/balance": ["expert_load", "expert_moves", "expert_placement", "planner"],
    "ferry/moe": ["moe_forward", "router"],
    "ferry/exchange": ["backend", "choose_backend", "dispatcher", "exchange_stats", "expert_rows", "placement"],
    "ferry/transport": ["agreement", "inproc", "join", "launch", "membership", "store", "tcp_store", "transport", "world"],
    "ferry/core": ["buffer", "error", "export", "function_ref", "memory_kind", "threads", "types", "version"],
    "ferry/kernels": ["wire"],
    "ferry/c": ["ferry", "c/all_to_all", "c/base", "c/comm", "c/engine", "c/eplb", "c/experts", "c/moe_forward", "c/placement"],
}
ROOM_OF_PUBLIC = {f"ferry/{name}.h": room for room, names in PUBLIC.items() for name in names}


def all_below(room: str) -> set[str]:
    return set(BELOW[room]).union(*(all_below(other) for other in BELOW[room]))


ROOMS = {room: sorted(other + "/" for other in all_below(room)) for room in BELOW} | {
    "apps": ["ferry/"],
    "bindings": ["ferry/"],
    "bench": ["apps/ferry/", "ferry/"],
    "examples": ["ferry/"],
    "tests": ["ferry/", "apps/"],
}

# Third-party headers that our own headers may include: fmt is the vocabulary of errors, json_fwd
# exists to be included in headers. Tests' headers may use GoogleTest, those of bindings what they bind with.
HEADERS_MAY_USE = {"fmt/core.h", "nlohmann/json_fwd.hpp"}
TEST_HEADERS_MAY_USE = ("gtest/", "gmock/", "nlohmann/")
BINDING_HEADERS_MAY_USE = ("nanobind/",)

# What the C and C++ standard libraries, POSIX and Linux name without a dot or under these folders.
SYSTEM = re.compile(r"^([a-z_0-9]+|c[a-z]+|(sys|linux|asm)/.*|[a-z]*mmintrin\.h|cpuid\.h|"
                    r"(dirent|fcntl|poll|sched|signal|spawn|unistd|pthread|time|errno|dlfcn)\.h)$")
STANDARD = re.compile(r"^([a-z_0-9]+|std(def|int)\.h)$")
INCLUDE = re.compile(r'^\s*#\s*include\s*(<([^>]+)>|"([^"]+)")')


def may_include(room: str, own: str) -> bool:
    """Whether files of `room` may include "own", which is not of that room by its path."""
    if own in ROOM_OF_PUBLIC:
        own = ROOM_OF_PUBLIC[own] + "/"
    return own.startswith((room + "/", *ROOMS[room]))


def problems_of_public(path: str, text: str) -> list[str]:
    name = path.removeprefix("include/")
    room = ROOM_OF_PUBLIC.get(name)
    if room is None:
        return [f"{path}: no room has this public header; tools/check_rooms.py lists them"]
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        system, own = match[2], match[3]
        if (own not in ROOM_OF_PUBLIC or not may_include(room, own)) if own else not STANDARD.match(system):
            found.append(f"{path}:{number}: a public header may not include {own or system}")
    return found


def room_of(path: str) -> str | None:
    return next((room for room in ROOMS if path.startswith(room + "/")), None)


def problems_of(path: str, text: str) -> list[str]:
    if path.startswith("include/"):
        return problems_of_public(path, text)
    room = room_of(path)
    if room is None:
        return [f"{path}: not in any room; tools/check_rooms.py and docs/design.md list them"]
    is_header = path.endswith((".h", ".inl"))
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        system, own = match[2], match[3]
        where = f"{path}:{number}"
        if own:
            in_same_room = own.startswith(room + "/") or "/" not in own
            if room == "tests":  # an include root of its own: "support/ranks.h"
                in_same_room = not own.startswith(("ferry/", "apps/", "bench/"))
            if not in_same_room and not may_include(room, own):
                found.append(f'{where}: {room} may not include "{own}"')
        elif is_header and not SYSTEM.match(system) and system not in HEADERS_MAY_USE:
            allowed = {"tests": TEST_HEADERS_MAY_USE, "bindings": BINDING_HEADERS_MAY_USE}.get(room, ())
            if not system.startswith(allowed):
                found.append(f"{where}: <{system}> belongs into a .cpp file, not into a header")
    return found


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent)
    problems, files = [], 0
    for top in sorted({room.split("/")[0] for room in ROOMS} | {"include"}):
        for path in sorted((root / top).rglob("*")):
            if path.suffix in {".h", ".inl", ".cpp", ".cu", ".cuh"}:
                files += 1
                problems += problems_of(str(path.relative_to(root)), path.read_text())
    print("\n".join(problems) or f"rooms: {files} files include only what they may")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
