"""How long `costprof --help` takes, as a multiple of `python -c pass` in the same run.

    python benchmarks/startup.py

The two commands run in turn, so that a slow moment of the machine hits both; the ratio is taken
pair by pair. Aim: at most 12.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

AIM = 12.0


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=15)
    options = parser.parse_args()
    nothing = [sys.executable, "-c", "pass"]
    ours = [str(Path(sysconfig.get_path("scripts")) / "costprof"), "--help"]
    for command in (nothing, ours):
        seconds(command)
    pairs = [(seconds(nothing), seconds(ours)) for _ in range(options.pairs)]
    ratios = sorted(help_s / pass_s for pass_s, help_s in pairs)
    print(
        json.dumps(
            {
                "python_pass_s_median": statistics.median(pair[0] for pair in pairs),
                "costprof_help_s_median": statistics.median(pair[1] for pair in pairs),
                "ratio_min": ratios[0],
                "ratio_median": statistics.median(ratios),
                "ratio_max": ratios[-1],
                "aim": AIM,
                "pairs": options.pairs,
            },
            indent=1,
        )
    )
    return 0 if statistics.median(ratios) <= AIM else 1


if __name__ == "__main__":
    sys.exit(main())
