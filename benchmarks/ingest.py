"""CPU, time and memory of ingesting a large nsys export, beside pandas and `nsys stats`.

    python benchmarks/ingest.py                     2 M kernels, 2 M launches, 50 k ranges
    python benchmarks/ingest.py --kernels 100000 --repeats 1

Each method runs in a fresh process, the methods interleaved, so that a busy machine disturbs all
alike. Figures are the kernel's own (`wait4`), of the process and its children. All methods must
agree on the number of kernels and their time per range text.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
from synthetic_export import write_export

from costprof.profiler.nsys.tool import find_nsys

Totals = dict[tuple[str, str], tuple[int, int]]
"""Kernels and their time in ns, by range text; "own" counts a kernel in its innermost range,
"all" in each range around it. The text of those in none is ""."""

CPU_AIM = 0.40
RSS_AIM_MB = 600


@dataclass(frozen=True)
class Run:
    """What one process took."""

    cpu_s: float
    wall_s: float
    rss_mb: float


def _timed(command: list[str], output: Path) -> Run:
    with output.open("wb") as file:
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[:4]} failed: {output.read_text(errors='replace')[-2000:]}")
    return Run(usage.ru_utime + usage.ru_stime, wall_s, usage.ru_maxrss / 1024)


def _costprof(export: Path, folder: Path) -> tuple[Run, Totals]:
    command = [sys.executable, "-m", "costprof.cli.main", "ingest", str(export)]
    run = _timed([*command, "--out", str(folder / "d")], folder / "log")
    return run, _parquet_totals(folder / "d/kernels/*.parquet")


def _pandas(export: Path, folder: Path) -> tuple[Run, Totals]:
    script = Path(__file__).with_name("ingest_pandas.py")
    target = folder / "kernels.parquet"
    run = _timed([sys.executable, str(script), str(export), str(target)], folder / "log")
    return run, _parquet_totals(target)


def _nsys_stats(nsys: str) -> Callable[[Path, Path], tuple[Run, Totals]]:
    def method(export: Path, folder: Path) -> tuple[Run, Totals]:
        # nsys may write into the export it reads.
        copy = folder / export.name
        shutil.copyfile(export, copy)
        table = folder / "table"
        names = subprocess.run(
            [nsys, "stats", "--help-reports"], capture_output=True, text=True, check=False
        ).stdout
        report = "nvtx_kern_sum" if "nvtx_kern_sum" in names else "nvtxkernsum"
        command = [nsys, "stats", f"--report={report}", "--format=csv", "--quiet"]
        run = _timed([*command, f"--output={table}", str(copy)], folder / "log")
        totals: Totals = {}
        for path in folder.glob("table*.csv"):
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.DictReader(file):
                    # It counts a kernel in every range around it; "None" has no style.
                    text = row["NVTX Range"] if row["Style"] != "None" else ""
                    count, total_ns = totals.get(("all", text), (0, 0))
                    totals["all", text] = (
                        count + int(row["Kern Inst"]),
                        total_ns + int(row["Total Time (ns)"]),
                    )
        return run, totals

    return method


def _parquet_totals(files: Path) -> Totals:
    rows = duckdb.execute(
        """
        WITH kernel AS (SELECT range_text, range_path, duration_ns FROM read_parquet($1)),
        own AS (SELECT 'own' AS kind, coalesce(range_text, '') AS text, duration_ns FROM kernel),
        around AS (
            SELECT 'all' AS kind, unnest(coalesce(range_path, [''])) AS text, duration_ns
            FROM kernel
        )
        SELECT kind, text, count(*), sum(duration_ns)::BIGINT
        FROM (FROM own UNION ALL FROM around) GROUP BY ALL
        """,
        [str(files)],
    ).fetchall()
    return {(kind, text): (count, total) for kind, text, count, total in rows}


def measure(kernels: int, ranges: int, repeats: int) -> dict[str, object]:
    """Run all methods `repeats` times on one export and return their figures.

    Exits with a message if two methods disagree.
    """
    methods = {"costprof": _costprof, "pandas + sqlite3": _pandas}
    nsys = find_nsys()
    if nsys is not None:
        methods["nsys stats"] = _nsys_stats(str(nsys.path))
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    with tempfile.TemporaryDirectory(prefix="costprof-bench-") as folder:
        export = Path(folder) / "export.sqlite"
        write_export(export, kernels=kernels, ranges=ranges)
        export_mb = export.stat().st_size / 1e6
        for _ in range(repeats):
            totals: dict[str, Totals] = {}
            for name, method in methods.items():
                with tempfile.TemporaryDirectory(dir=folder) as own:
                    run, totals[name] = method(export, Path(own))
                    runs[name].append(run)
            _require_agreement(totals, kernels)
    return {
        "kernels": kernels,
        "ranges": ranges,
        "export_mb": round(export_mb, 1),
        "cores": len(os.sched_getaffinity(0)),
        "runs": {name: [asdict(run) for run in own] for name, own in runs.items()},
        "cpu_of_pandas": _median(runs["costprof"], "cpu_s")
        / _median(runs["pandas + sqlite3"], "cpu_s"),
    }


def _require_agreement(totals: dict[str, Totals], kernels: int) -> None:
    ours = totals["costprof"]
    if sum(count for (kind, _), (count, _) in ours.items() if kind == "own") != kernels:
        sys.exit("costprof lost or doubled kernels")
    for name, found in totals.items():
        kinds = {kind for kind, _ in found}
        if found != {key: value for key, value in ours.items() if key[0] in kinds}:
            sys.exit(f"costprof and {name} disagree on kernels or time per range")


def _median(runs: list[Run], field: str) -> float:
    return statistics.median(getattr(run, field) for run in runs)


def _print(result: dict[str, object]) -> None:
    print(
        f"{result['kernels']:,} kernels, {result['ranges']:,} ranges, {result['export_mb']} MB, "
        f"{result['cores']} cores; median (least to most)"
    )
    runs = result["runs"]
    assert isinstance(runs, dict)
    print(f"{'method':<18}{'CPU s':>24}{'wall s':>24}{'peak RSS MB':>24}")
    for name, own in runs.items():
        cells = []
        for field, digits in (("cpu_s", 1), ("wall_s", 1), ("rss_mb", 0)):
            values = [run[field] for run in own]
            low, middle, high = min(values), statistics.median(values), max(values)
            cells.append(f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        print(f"{name:<18}" + "".join(f"{cell:>24}" for cell in cells))
    print(f"costprof takes {result['cpu_of_pandas']:.0%} of pandas' CPU (aim: {CPU_AIM:.0%})")
    print(f"aim for its memory: {RSS_AIM_MB} MB")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernels", type=int, default=2_000_000)
    parser.add_argument("--ranges", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(arguments.kernels, arguments.ranges, arguments.repeats)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        _print(result)


if __name__ == "__main__":
    main()
