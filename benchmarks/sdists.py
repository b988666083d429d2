"""Download pinned source distributions from the Python package index (PEP 503, PEP 691)."""

from __future__ import annotations

import hashlib
import json
import os
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from costprof.core.errors import InputError
from costprof.core.files import replacing
from costprof.runtime.small_lm.text import SourcePackage

_JSON = "application/vnd.pypi.simple.v1+json"
_TIMEOUT_S = 120


def fetch_missing(packages: Sequence[SourcePackage], folder: Path) -> None:
    """Download each of `packages` that is not in `folder`, and check its hash.

    The index is that of the environment variable PIP_INDEX_URL, else the public one.

    Raises:
        InputError: the index cannot be reached, lacks a file or gives another.
    """
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
    for package in packages:
        path = folder / package.file
        if path.exists():
            continue
        try:
            listing = json.loads(_get(f"{index}/{package.name}/", accept=_JSON))
            (url,) = [f["url"] for f in listing["files"] if f["filename"] == package.file]
            content = _get(url)
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{package.file} cannot be downloaded ({error})",
                "the corpus is incomplete",
                f"put it into {folder} by hand",
            ) from error
        if hashlib.sha256(content).hexdigest() != package.sha256:
            raise InputError(
                f"{package.file} as downloaded has another sha256",
                "it was not kept",
                "use another index",
            )
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def _get(url: str, accept: str = "*/*") -> bytes:
    if not url.startswith("https://"):
        raise ValueError(f"{url} is not https")
    request = urllib.request.Request(url, headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        content: bytes = response.read()
    return content
