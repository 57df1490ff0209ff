"""Measures every speed we claim against the other way of doing it: `python -m bench.speed [--quick] [--only GROUP]`.

The rows come from the other modules here, a process a group. A finished group stays in `runs/bench/` under the state
of the code it measured and is not measured again; one that fails leaves its rows and its log there and costs no other
group anything. Ends with a table, `bench/ratios.json`, and the tables of docs/performance.md; quick runs touch neither.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from bench import page
from bench.measure import ONE_THREAD, ROOT, Row

RUNS = ROOT / "runs" / "bench"
RATIOS = ROOT / "bench" / "ratios.json"
MEASURED = ("bench", "dialoom/embed.py", "dialoom/simulate.py", "dialoom/models",  # what a figure depends on
            "dialoom/train", "dialoom/pocket/weights")
NOT_MEASURED = ("results.py", "page.py")  # of the bench
KEYS = ("work", "against", "ratio", "setting")
TRL = ("trl==1.16.0", "datasets==5.2.0", "dill==0.4.1", "multiprocess==0.70.19", "pandas==3.1.1", "pyarrow==26.0.1",
       "python-dateutil==4.0.0", "six==1.17.0", "xxhash==4.1.0")  # beside what our own environment has
LIMIT = 2400  # seconds of a group
Log = Callable[[str], None]


def say(text: str) -> None:
    """A line on stderr with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def groups(quick: bool) -> dict[str, Callable[..., Iterator[Row]]]:
    """Every group of rows by name, in the order of the table."""
    from bench import grow
    parts = {f"grow-{name}": part for name, part in grow.groups(quick).items()}
    return {"dpo": _rows_of("bench.dpo"), **parts, "collect": _rows_of("bench.collect"),
            "curves": _rows_of("bench.curves"), "clusters": _rows_of("bench.clusters")}


def _rows_of(module: str) -> Callable[..., Iterator[Row]]:
    def rows(*, quick: bool, log: Log) -> Iterator[Row]:
        yield from importlib.import_module(module).rows(quick=quick, log=log)
    return rows


def state_of_code() -> str:
    """12 hex digits over the measured code, the weights, and the libraries under them."""
    digest = hashlib.blake2b(digest_size=6)
    for place in MEASURED:
        for path in sorted([ROOT / place, *(ROOT / place).rglob("*")]):
            if path.suffix in (".py", ".safetensors") and path.name not in NOT_MEASURED:
                digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    for library in ("torch", "transformers"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()


def measured(group: str, runs: Path, *, quick: bool, fresh: bool = False) -> list[Row]:
    """The rows of a group: found finished, or measured in a process of its own; those there are, if that fails.

    Args:
        fresh: measure it even if it is finished.
    """
    state = state_of_code()
    folder = runs / f"{'quick' if quick else 'full'}-{state}"
    finished, under_way = folder / f"{group}.jsonl", folder / f"{group}.part"
    if finished.exists() and not fresh:
        say(f"{group}: found in {finished}")
        return read_rows(finished)
    say(f"{group}: measuring")
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "bench.speed", "--child", group, *(["--quick"] if quick else [])]
    failed = ""
    with under_way.open("wb") as out, (folder / f"{group}.log").open("wb") as log:
        try:
            subprocess.run(command, cwd=ROOT, stdout=out, stderr=log, env=ONE_THREAD, timeout=LIMIT, check=True)
        except subprocess.SubprocessError as error:
            failed = str(error).rpartition("' ")[2]
    if not failed and state_of_code() != state:
        failed = "the code was changed meanwhile"
    for line in (folder / f"{group}.log").read_text(errors="replace").splitlines():
        if "SKIPPED" in line or "left out" in line:
            say(line)
    if failed:
        say(f"{group}: FAILED ({failed}), rows are missing; see {folder / group}.log; the same command tries again")
        return read_rows(under_way)
    under_way.rename(finished)
    return read_rows(finished)


def read_rows(path: Path) -> list[Row]:
    """Rows out of a file of JSON lines; a torn last line is left out."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]


def child(group: str, quick: bool) -> None:
    """Measure one group here and print its rows as JSON lines; what libraries print goes to stderr."""
    import os
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for row in groups(quick)[group](quick=quick, log=say):
        out.write(json.dumps(checked(row)) + "\n")
        out.flush()


def checked(row: Row) -> Row:
    """The row, its four keys first. Raises ValueError if one is missing or the ratio is no positive number."""
    missing = [key for key in KEYS if key not in row]
    if missing or not 0 < row["ratio"] < float("inf"):
        raise ValueError(f"a row needs {', '.join(KEYS)} and a ratio above 0; this one is {row}")
    return {**{key: row[key] for key in KEYS}, **row}


def write_json(rows: Sequence[Row], out: Path) -> None:
    """A JSON list, a row a line, figures to four digits."""
    lines = [json.dumps({key: float(f"{value:.4g}") if isinstance(value, float) else value
                         for key, value in row.items()}, ensure_ascii=False) for row in rows]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def table(rows: Iterable[Row]) -> str:
    """The rows for a terminal, in columns."""
    lines = [("work", "against", "ratio", "ours s", "theirs s", "same", "setting")]
    for row in rows:
        seconds = [f"{row[key]:.3g}" if key in row else "" for key in ("ours_s", "theirs_s")]
        same = f"{row['identical']} of {row['compared']}" if "compared" in row else ""
        lines.append((row["work"], row["against"], f"{row['ratio']:.2f}", *seconds, same, row["setting"]))
    widths = [max(len(line[at]) for line in lines) for at in range(6)]
    return "\n".join("  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[6]])
                     for line in lines)


def machine() -> str:
    """What the figures were measured on, in one line."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")] if Path("/proc/cpuinfo").exists() else []
    libraries = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers"))
    return f"{names[0] if names else platform.processor()}, one thread; Python {platform.python_version()}, {libraries}"


def install_trl(log: Log) -> None:
    """Put TRL where `bench.dpo` looks for it; without it those rows are left out, which is said."""
    site = RUNS / "site-packages"
    if (site / "trl").is_dir():
        return
    log(f"installing {TRL[0]} into {site} (once)")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    done = subprocess.run([*pip, "--no-deps", "--only-binary", ":all:", "--target", str(site), *TRL],
                          capture_output=True, text=True)
    if done.returncode:
        log(f"TRL cannot be installed: {done.stderr.strip()[-300:]}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the table, the JSON and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy sizes: shows that everything runs, measures nothing")
    parser.add_argument("--fresh", action="store_true", help="measure finished groups again")
    parser.add_argument("--only", nargs="+", metavar="GROUP", help="these groups only, none of the files but --out")
    parser.add_argument("--out", type=Path, help=f"where the JSON goes (default: {RATIOS.relative_to(ROOT)}, or "
                        "runs/bench/ where that would be incomplete)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="where finished groups are kept")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.child:
        child(given.child, given.quick)
        return
    names = list(groups(given.quick))
    if unknown := set(given.only or ()) - {*names}:
        raise SystemExit(f"no group {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if not given.quick and "dpo" in (given.only or names):
        install_trl(say)
    start = time.monotonic()
    found = [row for name in given.only or names
             for row in measured(name, given.runs, quick=given.quick, fresh=given.fresh)]
    print(table(found))
    partial = given.quick or bool(given.only)
    out = given.out or (given.runs / "ratios.json" if partial else RATIOS)
    write_json(found, out)
    say(f"{len(found)} rows in {out}, {(time.monotonic() - start) / 60:.0f} min")
    if not partial:
        page.fill(found, machine())


if __name__ == "__main__":
    main()
