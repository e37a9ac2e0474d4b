#!/usr/bin/env python3
"""Compares `ferry simulate` with published times of dispatch and combine.

    tools/check_simulate.py [--ferry PATH] [--json]

tools/published_exchange_times.json has the tables, each with its source and its role. Links and memory
are those of data sheets. One number is fitted: start_us, of a phase before anything is sent, for each of
two kinds of networks, from a table of five and one of six rows. All other tables are held out. Beside
our error stands that of log-linear interpolation, once over the other rows of the very table (which
forecasts do not see), once from the fitted table alone (what they do see). Runs nothing but the
forecasts; takes seconds.
"""

import argparse
import json
import math
import statistics
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
HIDDEN, EXPERTS, TOPK = 7168, 256, 8
ROW = {"fp8": HIDDEN + HIDDEN // 128 * 4, "bf16": 2 * HIDDEN}


def description(system, start_us):
    return {
        "hosts": 2048 // system["ranks_per_host"],
        "ranks_per_host": system["ranks_per_host"],
        "copies_overlap": True,
        "start_us": start_us,
        # Kernels put rows of their own accord: their rates are no limit, so these are out of the way.
        "links": [
            {"name": "nvlink", "latency_us": 1, "gbytes_per_s": system["nvlink"], "messages_per_s": 1e9},
            {"name": "network", "latency_us": 3, "gbytes_per_s": system["network"], "messages_per_s": 2e8},
        ],
        "memory": {"gbytes_per_s": system["memory"]},
        "kernels": {"tflops": 1000},
    }


def forecast(ferry, table, system, start_us):
    """{(operation, ranks): microseconds}"""
    ranks = sorted({int(r) for op in ("dispatch", "combine") for r in table.get(op, {})})
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(description(system, start_us), file)
        file.flush()
        command = [ferry, "simulate", "--cluster", file.name, "--json", "--exchange-only", "--draws", "2",
                   "--ep", ",".join(map(str, ranks)), "--tokens", str(table["tokens"]),
                   "--moe-a2a-backend", table["backend"], "--deepep-mode", "normal",
                   "--dispatch-wire", table["wires"][0], "--combine-wire", table["wires"][1],
                   "--hidden", str(HIDDEN), "--experts", str(EXPERTS), "--topk", str(TOPK)]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {(op, f["ranks"]): f[op + "_us"]["p50"]
            for f in json.loads(out)["forecasts"] for op in ("dispatch", "combine")}


def published(table, system):
    """The same, from the table."""
    times = {}
    for wire, op in zip(table["wires"], ("dispatch", "combine")):
        for ranks, value in table.get(op, {}).items():
            if table["unit"] == "us":
                times[op, int(ranks)] = value
                continue
            copies = TOPK
            if table["counts"] == "per_host":
                hosts = int(ranks) // system["ranks_per_host"]
                elsewhere = EXPERTS - EXPERTS // hosts
                copies = hosts * (1 - math.comb(elsewhere, TOPK) / math.comb(EXPERTS, TOPK))
            times[op, int(ranks)] = table["tokens"] * copies * ROW[wire] / value / 1e3
    return times


def interpolated(times, op, ranks):
    """log t over log ranks from the two nearest other rows of the same operation; None without two."""
    others = sorted((r for o, r in times if o == op and r != ranks), key=lambda r: abs(math.log(r / ranks)))[:2]
    if len(others) < 2:
        return None
    (xa, ya), (xb, yb) = ((math.log(r), math.log(times[op, r])) for r in others)
    return math.exp(ya + (math.log(ranks) - xa) * (yb - ya) / (xb - xa))


def line_of(times):
    """Least squares of t over log2 ranks, both operations of a table together."""
    xs, ys = [math.log2(r) for _, r in times], list(times.values())
    mx, my = statistics.mean(xs), statistics.mean(ys)
    slope = sum((x - mx) * (y - my) for x, y in zip(xs, ys)) / sum((x - mx) ** 2 for x in xs)
    return lambda r: my + slope * (math.log2(r) - mx)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", default=str(HERE.parent / "build/release/ferry"))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    args = parser.parse_args()
    data = json.loads((HERE / "published_exchange_times.json").read_text())

    start, line, row_bytes = {}, {}, {}
    for table in data["tables"]:
        if table["role"] != "fit":
            continue
        system = data["systems"][table["system"]]
        kind = system.get("start", "network")
        without = forecast(args.ferry, table, system, 0)
        times = published(table, system)
        start[kind] = max(0.0, statistics.mean(t - without[key] for key, t in times.items()))
        line[kind] = line_of(times)
        row_bytes[kind] = {ROW[table["wires"][0]]} if "combine" not in table else set(ROW.values())

    rows = []
    for table in data["tables"]:
        system = data["systems"][table["system"]]
        kind = system.get("start", "network")
        ours, times = forecast(args.ferry, table, system, start[kind]), published(table, system)
        for (op, ranks), time in times.items():
            within = interpolated(times, op, ranks)
            # The line's time, in proportion to tokens and bytes of a row.
            wire = table["wires"][0 if op == "dispatch" else 1]
            scale = table["tokens"] / 128 * ROW[wire] / statistics.mean(row_bytes[kind])
            rows.append({"table": table["name"], "role": table["role"], "operation": op, "ranks": ranks,
                         "predicted_us": ours[op, ranks], "published_us": time,
                         "error": ours[op, ranks] / time - 1,
                         "interpolated_error": None if within is None else within / time - 1,
                         "line_error": line[kind](ranks) * scale / time - 1})

    held = [r for r in rows if r["role"] == "held"]
    unfitted = [r for r in rows if r["role"] != "fit"]
    both = [r for r in held if r["interpolated_error"] is not None]
    median = lambda rows, key: statistics.median(abs(r[key]) for r in rows)
    report = {"start_us": start, "held_rows": len(held), "median_error": median(held, "error"),
              "worst_error": max(abs(r["error"]) for r in held),
              "unfitted_rows": len(unfitted), "median_error_unfitted": median(unfitted, "error"),
              "median_line_error": median(held, "line_error"),
              "rows_with_interpolation": len(both), "median_error_there": median(both, "error"),
              "median_interpolated_error_there": median(both, "interpolated_error"), "rows": rows}
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    for table in data["tables"]:
        mine = [r for r in rows if r["table"] == table["name"]]
        print(f"\n{table['name']} ({table['source']}; {table['role']}); median error {median(mine, 'error'):.0%}")
        if table["role"] == "unexplained":
            print(f"  not explained: {table['reason']}")
        for r in mine:
            inside = "" if r["interpolated_error"] is None else f"{r['interpolated_error']:+.0%}"
            print(f"  {r['operation']:<9} EP{r['ranks']:<4} predicted {r['predicted_us']:9.1f} us, published "
                  f"{r['published_us']:9.1f}, error {r['error']:+5.0%}; interpolated {inside:>5}; "
                  f"line {r['line_error']:+5.0%}")
    for table in data["left_out"]:
        print(f"\nleft out: {table['name']}: {table['reason']}")
    print(f"\nstart_us fitted: {', '.join(f'{k} {v:.1f}' for k, v in start.items())}")
    print(f"held out: {len(held)} rows, median error {report['median_error']:.1%}, worst {report['worst_error']:.0%}; "
          f"the fitted tables' line: {report['median_line_error']:.1%}")
    print(f"with the tables that are not explained: {len(unfitted)} rows, median error {report['median_error_unfitted']:.1%}")
    print(f"of the held out {len(both)} have two other rows to interpolate between: ours {report['median_error_there']:.1%}, "
          f"interpolated from the table itself {report['median_interpolated_error_there']:.1%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
