#!/usr/bin/env python3
"""Checks that a shared library shows the public interface and nothing else.

    tools/check_exports.py LIBRARY HEADER...

The public interface is what the headers mark with FERRY_API: classes, with all their members, and
functions, those of C included. Every dynamic symbol that the library defines must be of one of these, and every function
must be there. (A class may be all inline.)
"""

import re
import subprocess
import sys
from pathlib import Path

MARKED_CLASS = re.compile(r"\b(?:class|struct)\s+FERRY_API\s+(\w+)")
MARKED_FUNCTION = re.compile(r"^FERRY_API\s[^;{(]*?\b(\w+)\s*\(", re.MULTILINE)
SYMBOL = re.compile(r"^(?:(?:vtable for |typeinfo for |typeinfo name for )?ferry::(\w+)|(ferry_\w+)$)")


def marked(headers: list[str], mark: re.Pattern[str]) -> set[str]:
    return {name for header in headers for name in mark.findall(Path(header).read_text())}


def shown(library: str) -> list[str]:
    listing = subprocess.run(["nm", "--dynamic", "--defined-only", "--demangle", library],
                             check=True, capture_output=True, text=True).stdout
    return [line.split(maxsplit=2)[2] for line in listing.splitlines()]


def main() -> int:
    library, headers = sys.argv[1], sys.argv[2:]
    functions, symbols = marked(headers, MARKED_FUNCTION), shown(library)
    public = functions | marked(headers, MARKED_CLASS)
    problems, seen = [], set()
    for symbol in symbols:
        match = SYMBOL.match(symbol)
        name = match and (match[1] or match[2])
        if name in public:
            seen.add(name)
        else:
            problems.append(f"{library} shows {symbol}, which no public header marks with FERRY_API")
    problems += [f"{library} lacks {name}, which a public header marks"
                 for name in sorted(functions - seen)]
    print("\n".join(problems) or f"exports: {len(symbols)} symbols of {len(public)} public names")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
