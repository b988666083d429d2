"""Where a command's result goes, looked at before the work begins."""

from __future__ import annotations

from pathlib import Path

from costprof.core.errors import InputError
from costprof.core.files import writable_folder


def check_out(out: Path, *, force: bool, consequence: str) -> None:
    """Check that the file `out` may be written; `consequence` is what a folder there prevents.

    Nothing is made: of folders that are missing, the nearest one above must be writable.

    Raises:
        InputError: it is a folder, it exists and `force` is False, or its folder cannot be written.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder", consequence, "name a file with --out")
    if out.exists() and not force:
        raise InputError(
            f"{out} exists", "it was not overwritten", "use --force or another name with --out"
        )
    writable_folder(next(folder for folder in out.absolute().parents if folder.exists()))


def check_dataset(dataset: Path, consequence: str) -> None:
    """Check that there is a folder `dataset`.

    Raises:
        InputError: there is none.
    """
    if dataset.is_dir():
        return
    if dataset.is_file():
        raise InputError(
            f"{dataset} is a file, not the folder of a dataset",
            consequence,
            f"take public measurements into one with: costprof ingest --format aiconfigurator "
            f"{dataset} --out DIR",
        )
    raise InputError(
        f"there is no folder {dataset}",
        consequence,
        f"make one with: costprof sweep --preset cpu-demo --out {dataset}, or of public "
        "measurements with: costprof ingest --format aiconfigurator",
    )
