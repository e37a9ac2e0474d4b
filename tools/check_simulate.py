#!/usr/bin/env python3
"""Compares `ferry simulate` with measured times of dispatch and combine.

    tools/check_simulate.py [--ferry PATH] [--json]
    tools/check_simulate.py --runs BENCH.json --cluster CLUSTER.json [--ferry PATH]

The first compares with published tables and with our own in docs/performance.md:
tools/published_exchange_times.json has them, each with its source and its role. Links and memory are those
of data sheets, or of `bench link`. One number is fitted for each kind of system: start_us, of a phase before
anything is sent, for two kinds of networks of devices; the rate of sums for our CPUs. All other tables are
held out. Beside our error stands that of log-linear interpolation, once over the other rows of the very table
(which forecasts do not see), once of the line through the fitted table (what they do see). Runs nothing but
the forecasts; takes seconds.

The second compares with runs of one's own: what `ferry bench a2a --json` printed, on hosts that the
description describes (tools/hosts.py makes hosts with limited cables of one machine).
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
OPERATIONS = ("dispatch", "combine")


def row_bytes(wire, hidden=HIDDEN):
    return hidden + hidden // 128 * 4 if wire == "fp8" else 2 * hidden


def description(system, fitted):
    """A cluster as `ferry simulate` reads it. Devices put rows of their own accord and copy them while others
    arrive: their rates of messages are out of the way."""
    cpu = system.get("start") == "cpu"
    rate = system.get("messages_per_s", 1e9)
    kernels = {"tflops": 1000} | ({"sum_gbytes_per_s": fitted} if cpu else {})
    return {
        "hosts": 2048 // system["ranks_per_host"],
        "ranks_per_host": system["ranks_per_host"],
        "copies_overlap": not cpu,
        "start_us": 0 if cpu else fitted,
        "links": [
            {"name": "host", "latency_us": system.get("host_latency_us", 1), "gbytes_per_s": system["host"],
             "messages_per_s": rate},
            {"name": "network", "latency_us": system.get("network_latency_us", 3),
             "gbytes_per_s": system["network"], "messages_per_s": rate},
        ],
        "memory": {"gbytes_per_s": system["memory"]},
        "kernels": kernels,
    }


def simulate(ferry, cluster, ranks, case, wires):
    """{(operation, ranks): microseconds} of a case of tokens, backend and so on."""
    command = [ferry, "simulate", "--cluster", str(cluster), "--json", "--exchange-only",
               "--draws", str(case.get("draws", 2)), "--ep", ",".join(map(str, ranks)),
               "--tokens", str(case["tokens"]), "--moe-a2a-backend", case["backend"],
               "--deepep-mode", case.get("mode") or "normal", "--layout", case.get("layout", "default"),
               "--dispatch-wire", wires[0], "--combine-wire", wires[1], "--routing", case.get("routing", "uniform"),
               "--hidden", str(case.get("hidden", HIDDEN)), "--experts", str(case.get("experts", EXPERTS)),
               "--topk", str(case.get("topk", TOPK))]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(ran.stderr.strip())
    out = ran.stdout
    return {(op, f["ranks"]): f[op + "_us"]["p50"] for f in json.loads(out)["forecasts"] for op in OPERATIONS}


def forecast(ferry, table, system, fitted):
    """{key: microseconds}; keys as published() has them."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(description(system, fitted), file)
        file.flush()
        if "cases" not in table:
            ranks = sorted({int(r) for op in OPERATIONS for r in table.get(op, {})})
            return simulate(ferry, file.name, ranks, table, table["wires"])
        times = {}
        for i, case in enumerate(table["cases"]):
            found = simulate(ferry, file.name, [table["ranks"]], case | {"draws": 20}, table["wires"])
            times |= {(op, i): us for (op, _), us in found.items()}
        return times


def published(table, system):
    """{(operation, ranks or number of the case): microseconds}"""
    if "cases" in table:
        return {(op, i): case[op] for i, case in enumerate(table["cases"]) for op in OPERATIONS if op in case}
    times = {}
    for wire, op in zip(table["wires"], OPERATIONS):
        for ranks, value in table.get(op, {}).items():
            if table["unit"] == "us":
                times[op, int(ranks)] = value
                continue
            copies = TOPK
            if table["counts"] == "per_host":
                hosts = int(ranks) // system["ranks_per_host"]
                elsewhere = EXPERTS - EXPERTS // hosts
                copies = hosts * (1 - math.comb(elsewhere, TOPK) / math.comb(EXPERTS, TOPK))
            times[op, int(ranks)] = table["tokens"] * copies * row_bytes(wire) / value / 1e3
    return times


def fit(ferry, table, system):
    """The one number that is not in a data sheet."""
    times = published(table, system)
    if system.get("start") != "cpu":
        without = forecast(ferry, table, system, 0)
        return max(0.0, statistics.mean(t - without[key] for key, t in times.items()))
    # Time is linear in one over the rate: two forecasts say how, least squares of the errors the rest.
    slow, fast = (forecast(ferry, table, system, rate) for rate in (10, 20))
    slopes = {key: (slow[key] - fast[key]) / (1 / 10 - 1 / 20) / t for key, t in times.items()}
    rests = {key: 1 - (fast[key] / t - slopes[key] / 20) for key, t in times.items()}
    return sum(s * s for s in slopes.values()) / sum(slopes[key] * rests[key] for key in times)


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


def rows_of(table, system, ours, line):
    """What is printed of a table; `line` is (function of ranks, mean bytes of its rows)."""
    times = published(table, system)
    for (op, at), time in times.items():
        case = table["cases"][at] if "cases" in table else None
        within = None if case else interpolated(times, op, at)
        along = None
        if line and not case:  # in proportion to tokens and bytes of a row
            wire = table["wires"][OPERATIONS.index(op)]
            along = line[0](at) * table["tokens"] / 128 * row_bytes(wire) / line[1]
        label = f"EP{at}" if not case else " ".join(
            [case["backend"], case.get("layout", ""), f"{case['tokens']}x{case['hidden']}"]).replace("  ", " ")
        yield {"table": table["name"], "role": table["role"], "operation": op, "case": label,
               "predicted_us": ours[op, at], "published_us": time, "error": ours[op, at] / time - 1,
               "interpolated_error": None if within is None else within / time - 1,
               "line_error": None if along is None else along / time - 1}


def median(rows, key="error"):
    return statistics.median(abs(r[key]) for r in rows if r[key] is not None)


def percent(value):
    return f"{value:+.0%}" if value is not None else ""


def check_tables(ferry):
    data = json.loads((HERE / "published_exchange_times.json").read_text())
    kind = lambda table: data["systems"][table["system"]].get("start", "network")
    fitted, lines = {}, {}
    for table in (t for t in data["tables"] if t["role"] == "fit"):
        system = data["systems"][table["system"]]
        fitted[kind(table)] = fit(ferry, table, system)
        if "cases" not in table:
            wires = [w for w, op in zip(table["wires"], OPERATIONS) if op in table]
            lines[kind(table)] = (line_of(published(table, system)), statistics.mean(map(row_bytes, wires)))
    rows = []
    for table in data["tables"]:
        system = data["systems"][table["system"]]
        ours = forecast(ferry, table, system, fitted[kind(table)])
        rows += rows_of(table, system, ours, lines.get(kind(table)))
    held = [r for r in rows if r["role"] == "held"]
    own = [r for r in held if r["table"].startswith("own")]
    unfitted = [r for r in rows if r["role"] != "fit"]
    both = [r for r in held if r["interpolated_error"] is not None]
    return data, {
        "fitted": fitted, "held_rows": len(held), "median_error": median(held),
        "worst_error": max(abs(r["error"]) for r in held), "own_rows": len(own), "median_error_own": median(own),
        "unfitted_rows": len(unfitted), "median_error_unfitted": median(unfitted),
        "median_line_error": median(held, "line_error"), "rows_with_interpolation": len(both),
        "median_error_there": median(both), "median_interpolated_error_there": median(both, "interpolated_error"),
        "rows": rows}


def print_tables(data, report):
    for table in data["tables"]:
        mine = [r for r in report["rows"] if r["table"] == table["name"]]
        print(f"\n{table['name']} ({table['source']}; {table['role']}); median error {median(mine):.0%}")
        if table["role"] == "unexplained":
            print(f"  not explained: {table['reason']}")
        for r in mine:
            print(f"  {r['operation']:<9}{r['case']:<28} predicted {r['predicted_us']:9.1f} us, published "
                  f"{r['published_us']:9.1f}, error {r['error']:+5.0%}; interpolated "
                  f"{percent(r['interpolated_error']):>5}; line {percent(r['line_error']):>5}")
    for table in data["left_out"]:
        print(f"\nleft out: {table['name']}: {table['reason']}")
    f = report["fitted"]
    print(f"\nfitted: start_us {f['network']:.1f} (network), {f['efa']:.1f} (EFA); sums {f['cpu']:.1f} GB/s (CPU)")
    print(f"held out: {report['held_rows']} rows, median error {report['median_error']:.1%}, worst "
          f"{report['worst_error']:.0%}; of our own {report['own_rows']}: {report['median_error_own']:.1%}")
    print(f"with the tables that are not explained: {report['unfitted_rows']} rows, {report['median_error_unfitted']:.1%}")
    print(f"where a table can be interpolated ({report['rows_with_interpolation']} rows): ours "
          f"{report['median_error_there']:.1%}, interpolation {report['median_interpolated_error_there']:.1%}; "
          f"lines through the fitted tables {report['median_line_error']:.1%}")


def check_runs(ferry, runs, cluster):
    """Own runs: the median of the slowest rank beside the forecast."""
    errors = []
    for run in json.loads(Path(runs).read_text()):
        if run["op"] not in OPERATIONS:
            continue
        backend = run["chosen"] or run["backend"]
        case = {k: run[k] for k in ("tokens", "layout", "routing", "hidden", "experts", "topk")}
        case |= {"backend": backend, "mode": run["mode"], "draws": 20}
        ours = simulate(ferry, cluster, [run["ranks"]], case, (run["dispatch_wire"], run["combine_wire"]))
        error = ours[run["op"], run["ranks"]] / run["p50_us"] - 1
        errors.append(abs(error))
        print(f"{run['op']:<9}EP{run['ranks']:<4}{backend:<14}{run['tokens']:>6} tokens: predicted "
              f"{ours[run['op'], run['ranks']]:9.1f} us, measured {run['p50_us']:9.1f}, error {error:+.0%}")
    if errors:
        print(f"{len(errors)} rows, median error {statistics.median(errors):.1%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ferry", default=str(HERE.parent / "build/release/ferry"))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--runs", help="what ferry bench a2a --json printed")
    parser.add_argument("--cluster", help="the description of what those ran on")
    args = parser.parse_args()
    if bool(args.runs) != bool(args.cluster):
        parser.error("--runs and --cluster go together")
    if args.runs:
        check_runs(args.ferry, args.runs, args.cluster)
        return 0
    data, report = check_tables(args.ferry)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        print_tables(data, report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
