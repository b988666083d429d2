"""What the verbs share when they print."""

from __future__ import annotations

import json
import sys
from typing import Any


def error_line(message: str) -> None:
    """Print one line to standard error."""
    print(f"costprof: {message}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Print `value` as JSON to standard output, for scripts."""
    print(json.dumps(value, indent=2, sort_keys=True, allow_nan=False))
