"""Parts of a dataset that come from one file: their names, and replacing them as a whole."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from costprof.core.errors import InputError
from costprof.core.hashing import content_id

FOLDERS = ("measurements", "kernels", "ranges", "counters")


def part_name(source: str, path: Path) -> str:
    """Return the name of the part that `path`, called `source`, becomes.

    It is made of the source's name and a hash of the content, so that the same file always gets
    the same name. It never starts with a dot, which would hide the part from `*.parquet`.
    """
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    return f"{_source_stem(source)}-{content}"


def other_parts(folder: Path, source: str, part: str) -> list[Path]:
    """Return the parts in the dataset `folder` that came from another file called `source`."""
    stem = _source_stem(source)
    return [
        path
        for name in FOLDERS
        for path in sorted((folder / name).glob(f"{stem}-????????.parquet"))
        if path.stem != part
    ]


def refuse_other_parts(folder: Path, source: str, part: str) -> None:
    """Check that `folder` holds nothing of another file with the same name.

    Rows name their file only, and range ids are unique within one file: two would be mixed up.

    Raises:
        InputError: it does.
    """
    others = other_parts(folder, source, part)
    if others:
        raise InputError(
            f"{folder} already holds another file called {source} ({others[0].name})",
            "it was not ingested",
            "rename one of the two, or replace the old one with --force",
        )


@contextlib.contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """On an exception remove the dataset folders that did not exist before and hold nothing."""
    candidates = [*(folder / name for name in FOLDERS), folder]
    fresh = [path for path in candidates if not path.exists()]
    try:
        yield
    except BaseException:
        for path in fresh:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def _source_stem(source: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(source).stem)[:80]
    return f"{readable}-{content_id(source, length=6)}"
