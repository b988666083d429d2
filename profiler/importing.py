"""Let a user's kernels and models be imported from the folder they stand in."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


@contextlib.contextmanager
def current_folder_importable() -> Iterator[None]:
    """Look for modules in the current folder too, after everything that is installed."""
    folder = str(Path.cwd())
    added = folder not in sys.path
    if added:
        sys.path.append(folder)
    try:
        yield
    finally:
        if added and folder in sys.path:
            sys.path.remove(folder)


def importing_environment(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return `base` (by default this process's environment) for a child that imports likewise."""
    environment = dict(os.environ if base is None else base)
    known = environment.get("PYTHONPATH", "")
    folder = str(Path.cwd())
    environment["PYTHONPATH"] = os.pathsep.join(part for part in (known, folder) if part)
    return environment
