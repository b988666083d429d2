"""The text the small language model is trained and judged on: files of pinned source packages.

A corpus is named by the packages, versions and SHA-256 sums of source distributions; the text
itself is never part of this project. A file's domain is its suffix, its split a hash of its
content: copies of one file never stand on both sides, and one more package moves no file between
splits.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from costprof.core.errors import InputError

SUFFIXES = {
    ".py": "python",
    ".c": "c",
    ".h": "c",
    ".rst": "prose",
    ".md": "prose",
    ".txt": "prose",
}
DOMAINS = ("python", "c", "prose")
SPLITS = ("train", "dev", "test")

END_OF_FILE = 0
"""The byte between files; files that hold it are no text and left out."""

_LEAST_BYTES, _MOST_BYTES = 512, 128 * 1024  # beyond: mostly tables and generated code
_SHARES_OF_20 = {0: "test", 1: "dev"}


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePackage:
    """One source distribution: `name` and `version` in an index, `sha256` of the file."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corpus:
    """Bytes of each domain of each split, files one after the other, each ended by a 0.

    Attributes:
        streams: By (split, domain), uint8 [n].
        sha256: Of the hashes of all files with their domain and split; names the corpus.
        files: How many there are by (split, domain).
    """

    streams: Mapping[tuple[str, str], np.ndarray[Any, np.dtype[np.uint8]]]
    sha256: str
    files: Mapping[tuple[str, str], int]

    def windows(
        self, split: str, domain: str, count: int, length: int, *, seed: int
    ) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Return `count` stretches of `length` bytes, [count, length], that do not overlap.

        The same for the same seed; the first of them are the same for any count.

        Raises:
            InputError: the split has fewer.
        """
        stream = self.streams[split, domain]
        places = len(stream) // length
        if count > places:
            raise InputError(
                f"{count} stretches of {length} bytes asked of {len(stream)} bytes of {domain}",
                "they would overlap",
                f"ask for at most {places}",
            )
        chosen = np.random.default_rng(seed).permutation(places)[:count]
        places_of = chosen[:, None] * length + np.arange(length)
        return np.take(stream, places_of)


def packages_of(path: Path) -> list[SourcePackage]:
    """Read the list of packages at `path`, JSON.

    Raises:
        InputError: it is no such list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["packages"]
        return [SourcePackage(**entry) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} lists no packages ({error})",
            "there is no corpus",
            "give JSON with packages of name, version, file and sha256",
        ) from error


def read_corpus(packages: Sequence[SourcePackage], folder: Path) -> Corpus:
    """Read the corpus from the source distributions in `folder`; nothing is unpacked to disk.

    Raises:
        InputError: a distribution is missing, damaged or not the one pinned.
    """
    found: dict[str, tuple[str, bytes]] = {}  # by content hash, so that copies count once
    for package in packages:
        path = _checked(package, folder)
        try:
            for domain, content in _texts(path):
                found.setdefault(hashlib.sha256(content).hexdigest(), (domain, content))
        except (tarfile.TarError, OSError, EOFError) as error:
            raise InputError(
                f"{path} is damaged ({error})", "there is no corpus", "fetch it again"
            ) from error
    parts: dict[tuple[str, str], list[bytes]] = {(s, d): [] for s in SPLITS for d in DOMAINS}
    names = hashlib.sha256()
    for digest in sorted(found):
        domain, content = found[digest]
        split = split_of(digest)
        parts[split, domain].append(content + bytes([END_OF_FILE]))
        names.update(f"{split} {domain} {digest}\n".encode())
    return Corpus(
        streams={key: np.frombuffer(b"".join(part), np.uint8) for key, part in parts.items()},
        sha256=names.hexdigest(),
        files={key: len(part) for key, part in parts.items()},
    )


def split_of(sha256: str) -> str:
    """Return the split of a file whose content has this hash: 18 of 20 train, one each judges."""
    return _SHARES_OF_20.get(int(sha256[:8], 16) % 20, "train")


def _checked(package: SourcePackage, folder: Path) -> Path:
    path = folder / package.file
    if PurePosixPath(package.file).name != package.file or not path.is_file():
        raise InputError(
            f"{path} is missing",
            "there is no corpus",
            f"fetch the source distribution of {package.name} {package.version}",
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise InputError(
            f"{path} has sha256 {digest}, not {package.sha256}",
            "the corpus would be another",
            f"fetch the source distribution of {package.name} {package.version} again",
        )
    return path


def _texts(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            domain = SUFFIXES.get(PurePosixPath(member.name).suffix.lower())
            if domain is None or not member.isfile():
                continue
            if not _LEAST_BYTES <= member.size <= _MOST_BYTES:
                continue
            file = archive.extractfile(member)
            content = b"" if file is None else file.read()
            if _is_text(content) and not (domain == "prose" and _is_list(content)):
                yield domain, content


def _is_text(content: bytes) -> bool:
    if END_OF_FILE in content:
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_list(content: bytes) -> bool:
    """Whether fewer than half of the characters are letters: data in a text file."""
    return len(re.findall(rb"[A-Za-z]", content)) < 0.5 * len(content)
