"""JSON as it lies under tests/data."""

import json
from pathlib import Path


def write_json(path: Path, data, compact: bool = False) -> None:
    if compact:  # one row a line: diffs stay readable, files small
        body = "[\n" + ",\n".join(json.dumps(row, ensure_ascii=True) for row in data) + "\n]"
    else:
        body = json.dumps(data, indent=2, ensure_ascii=False)
    path.write_text(body + "\n", encoding="utf-8")
