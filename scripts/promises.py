#!/usr/bin/env python3
"""Fills the table of promises in the README from what `make bench` has written.

    promises.py [--check] [--partial] [FILE.json...]     (target/bench.json by default)

Several files are taken together; of a promise that stands in more than one, the later file's figure counts. The table stands between two marks in
README.md, and nothing else of it is touched. Refused: figures of a `--quick` run, parts that did not get to their end (unless --partial). With --check
nothing is written, and the exit code says whether the table is what these files give.
"""

import argparse
import json
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- promises: written by scripts/promises.py -->", "<!-- end of promises -->"


def cell(text):
    """Text that cannot break out of its cell."""
    return str(text or "").replace("|", "\\|").replace("\n", " ").strip()


def rows_of(paths, partial):
    rows, machines = {}, []
    for path in paths:
        try:
            result = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            sys.exit(f"promises: {path}: {error}")
        if result.get("format") != "hearth-bench/1":
            sys.exit(f"promises: {path} has the format {result.get('format')!r}, expected is 'hearth-bench/1'")
        if result.get("quick"):
            sys.exit(f"promises: {path} is of a --quick run, whose figures are no figures")
        for failed in result.get("failed", []):
            words = f"{path}: {failed['part']} did not get to its end: {failed['error']}"
            if not partial:
                sys.exit(f"promises: {words}")
            print(f"promises: {words}", file=sys.stderr)
        machine = result["machine"]
        words = f"{machine['cores']} cores, {machine['kernel']}"
        if words not in machines:
            machines.append(words)
        for row in result["rows"]:
            rows[(row["part"], row["promise"])] = row
    return rows, machines


def table(rows, machines):
    lines = [
        f"Measured on {' and '.join(machines)}.",
        "",
        "| promise | measured | target | by |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows.values():
        figure = cell(row["figure"]) + (f" ({cell(row['note'])})" if row.get("note") else "")
        if row.get("kept") is False:
            figure += " **not kept**"
        lines.append(f"| {cell(row['promise'])} | {figure} | {cell(row['target'])} | `{cell(row['command'])}` |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; 1 where the table differs")
    parser.add_argument("--partial", action="store_true", help="take results of which parts failed")
    parser.add_argument("--readme", type=pathlib.Path, default=ROOT / "README.md")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    args = parser.parse_args()
    files = args.files or [ROOT / "target" / "bench.json"]
    rows, machines = rows_of(files, args.partial)
    text = args.readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        sys.exit(f"promises: {args.readme} needs the marks {BEGIN} and {END}, once each, in this order")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    new = f"{before}{BEGIN}\n{table(rows, machines)}\n{END}{after}"
    if args.check:
        sys.exit(0 if new == text else f"promises: the table in {args.readme} is not what these figures give")
    args.readme.write_text(new)
    print(f"promises: {len(rows)} rows written into {args.readme}")


if __name__ == "__main__":
    main()
