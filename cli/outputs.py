"""Where a command's result goes, looked at before the work begins."""

from __future__ import annotations

from pathlib import Path

from costprof.core.errors import InputError


def check_out(out: Path, *, force: bool, consequence: str) -> None:
    """Check that the file `out` may be written; `consequence` is what a folder there prevents.

    Raises:
        InputError: it is a folder, or it exists and `force` is False.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder", consequence, "name a file with --out")
    if out.exists() and not force:
        raise InputError(
            f"{out} exists", "it was not overwritten", "use --force or another name with --out"
        )


def check_dataset(dataset: Path, consequence: str) -> None:
    """Check that there is a folder `dataset`.

    Raises:
        InputError: there is none.
    """
    if not dataset.is_dir():
        raise InputError(
            f"there is no folder {dataset}",
            consequence,
            f"make one with: costprof sweep --preset cpu-demo --out {dataset}",
        )
