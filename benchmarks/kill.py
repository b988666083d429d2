"""Kill a sweep with SIGKILL at random moments, resume it each time, and compare with a calm one.

    python benchmarks/kill.py --kills 20 --backend nsys

The sweep is small, one process a scenario, so that the moments fall into planning, measuring,
exporting, writing and the time between runs. The kill hits the sweep alone: what it had started
goes on running, as it would after an out-of-memory kill, and the next start has to end it.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

SPEC = """
name = "kill"
device = "cpu"

[experts.a]
d_model = 64
d_ff = 64
dtype = "float32"

[[measure]]
expert = "a"
tokens = [1, 2, 3, 4, 5, 6]

[timing]
target_ms = 30
remeasure = 0
threads = 1
"""


def command(folder: Path, backend: str, name: str) -> list[str]:
    return [
        *(sys.executable, "-m", "costprof.cli.main", "sweep", str(folder / "kill.toml")),
        *("--out", str(folder / name), "--isolate", "--backend", backend, "--resume"),
    ]


def scenario_list(dataset: Path) -> list[str]:
    """Scenario ids of all rows, sorted; duplicates stay."""
    parts = sorted((dataset / "measurements").glob("*.parquet"))
    tables = [pq.read_table(part, columns=["scenario_id", "status"]) for part in parts]
    return sorted(name for table in tables for name in table["scenario_id"].to_pylist())


def rows_on_disk(dataset: Path) -> dict[str, datetime.datetime]:
    """When each scenario on disk was measured."""
    if not dataset.exists():
        return {}
    parts = sorted((dataset / "measurements").glob("*.parquet"))
    tables = [pq.read_table(part, columns=["scenario_id", "measured_at"]) for part in parts]
    return {row["scenario_id"]: row["measured_at"] for table in tables for row in table.to_pylist()}


def run_to_the_end(folder: Path, backend: str, name: str) -> float:
    began = time.monotonic()
    subprocess.run(command(folder, backend, name), check=True, capture_output=True)
    return time.monotonic() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "kill.toml").write_text(SPEC, encoding="utf-8")
        calm_s = run_to_the_end(folder, options.backend, "calm")
        wanted = scenario_list(folder / "calm")
        killed, kept, sweep = 0, [], 0
        before: dict[str, datetime.datetime] = {}
        while killed < options.kills:
            name = f"disturbed{sweep}"
            process = subprocess.Popen(
                command(folder, options.backend, name),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                # Up to what a calm sweep takes: the first half-second is still imports.
                process.wait(moments.uniform(0.5, calm_s))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                killed += 1
                now = rows_on_disk(folder / name)
                require_kept(before, now)
                kept.append(len(now))
                before = now
                continue
            if process.returncode != 0:
                raise RuntimeError(f"a resumed sweep failed with code {process.returncode}")
            require_kept(before, rows_on_disk(folder / name))
            check(folder / name, wanted)
            before = {}
            sweep += 1
        run_to_the_end(folder, options.backend, f"disturbed{sweep}")
        require_kept(before, rows_on_disk(folder / f"disturbed{sweep}"))
        check(folder / f"disturbed{sweep}", wanted)
        require_no_survivors(folder)
        print(
            json.dumps(
                {
                    "kills": killed,
                    "sweeps_finished": sweep + 1,
                    "scenarios": len(wanted),
                    "calm_s": round(calm_s, 1),
                    "rows_on_disk_at_each_kill": kept,
                    "equal_to_calm": True,
                }
            )
        )
    return 0


def require_kept(before: dict[str, datetime.datetime], now: dict[str, datetime.datetime]) -> None:
    """What was on disk at a kill stays as it was: one run at most is measured again."""
    again = [name for name, at in before.items() if now.get(name) != at]
    if len(again) > 1:
        raise RuntimeError(f"{len(again)} finished scenarios were lost or measured again")


def require_no_survivors(folder: Path) -> None:
    """No process started by a killed sweep is left once another has finished."""
    left = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                left.append(entry.name)
    if left:
        raise RuntimeError(f"processes {left} of killed sweeps are still running")


def check(dataset: Path, wanted: list[str]) -> None:
    found = scenario_list(dataset)
    if found != wanted:
        raise RuntimeError(f"{dataset.name} holds {found}, a calm sweep {wanted}")
    strays = list(dataset.rglob("*.partial"))
    if strays:
        raise RuntimeError(f"a resumed sweep left {strays}")


if __name__ == "__main__":
    sys.exit(main())
