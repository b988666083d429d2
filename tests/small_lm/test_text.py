"""The corpus: what is taken from a source distribution, and that it is the one pinned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from costprof.core.errors import InputError
from costprof.runtime.small_lm.evaluate import judged_text
from costprof.runtime.small_lm.text import (
    DOMAINS,
    SPLITS,
    Corpus,
    SourcePackage,
    packages_of,
    read_corpus,
    split_of,
)

Maker = Callable[..., SourcePackage]
ROOT = Path(__file__).resolve().parents[2]


def source(number: int) -> bytes:
    return f"def function_{number}():\n    return {number}\n".encode() * 20


def all_bytes(corpus: Corpus) -> dict[str, bytes]:
    return {d: b"".join(corpus.streams[s, d].tobytes() for s in SPLITS) for d in DOMAINS}


def test_a_file_goes_to_the_domain_of_its_suffix(make_sdist: Maker, tmp_path: Path) -> None:
    prose, c = b"Some words of prose. " * 40, b"int f(void) { return 0; }\n" * 40
    package = make_sdist("a", {"x.py": source(1), "doc/y.RST": prose, "z.c": c, "w.bin": c + b"."})
    found = all_bytes(read_corpus([package], tmp_path))
    assert found == {"python": source(1) + b"\0", "c": c + b"\0", "prose": prose + b"\0"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("short.py", b"x = 1\n"),
        ("long.py", b"x = 1\n" * 100_000),
        ("latin.py", b"# \xe9\n" * 200),
        ("zeros.c", b"int x;\n\0" * 200),
        ("table.txt", b"0.25 0.125 17 99\n" * 200),
    ],
)
def test_what_is_no_text_is_left_out(
    make_sdist: Maker, tmp_path: Path, name: str, content: bytes
) -> None:
    package = make_sdist("a", {name: content})
    assert not any(all_bytes(read_corpus([package], tmp_path)).values())


def test_copies_count_once_and_files_stand_in_the_split_of_their_hash(
    make_sdist: Maker, tmp_path: Path
) -> None:
    one = make_sdist("a", {f"{i}.py": source(i) for i in range(60)})
    two = make_sdist("b", {f"copy{i}.py": source(i) for i in range(30, 90)})
    corpus = read_corpus([one, two], tmp_path)
    assert sum(corpus.files.values()) == 90
    for i in range(90):
        split = split_of(hashlib.sha256(source(i)).hexdigest())
        for each in SPLITS:
            inside = source(i) + b"\0" in corpus.streams[each, "python"].tobytes()
            assert inside == (each == split)
    assert min(corpus.files[split, "python"] for split in SPLITS) > 0


def test_the_corpus_does_not_depend_on_the_order_of_packages(
    make_sdist: Maker, tmp_path: Path
) -> None:
    one = make_sdist("a", {f"{i}.py": source(i) for i in range(9)})
    two = make_sdist("b", {f"{i}.py": source(i) for i in range(5, 15)})
    forth, back = read_corpus([one, two], tmp_path), read_corpus([two, one], tmp_path)
    assert forth.sha256 == back.sha256
    assert all_bytes(forth) == all_bytes(back)
    assert read_corpus([one], tmp_path).sha256 != forth.sha256


def test_another_file_than_the_pinned_one_is_refused(make_sdist: Maker, tmp_path: Path) -> None:
    package = make_sdist("a", {"x.py": source(1)})
    with pytest.raises(InputError, match="has sha256"):
        read_corpus([replace(package, sha256="0" * 64)], tmp_path)
    with pytest.raises(InputError, match="is missing"):
        read_corpus([replace(package, file="b-1.0.tar.gz")], tmp_path)
    with pytest.raises(InputError, match="is missing"):
        read_corpus([replace(package, file=f"../{tmp_path.name}/{package.file}")], tmp_path)


def test_a_damaged_archive_is_refused(make_sdist: Maker, tmp_path: Path) -> None:
    package = make_sdist("a", {"x.py": source(1)})
    path = tmp_path / package.file
    path.write_bytes(path.read_bytes()[:60])
    cut = replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="is damaged"):
        read_corpus([cut], tmp_path)


def test_windows_do_not_overlap_and_repeat_by_seed(small_corpus: Corpus) -> None:
    stream = np.arange(200, dtype=np.uint8)
    corpus = replace(small_corpus, streams={("dev", "c"): stream})
    found = corpus.windows("dev", "c", 8, 24, seed=3)
    assert found.shape == (8, 24)
    assert len(np.unique(found)) == 8 * 24
    np.testing.assert_array_equal(found[:3], corpus.windows("dev", "c", 3, 24, seed=3))
    assert (found != corpus.windows("dev", "c", 8, 24, seed=4)).any()
    with pytest.raises(InputError, match="overlap"):
        corpus.windows("dev", "c", 9, 24, seed=3)


def test_neighbours_in_judged_text_are_of_different_domains(small_corpus: Corpus) -> None:
    text, domains = judged_text(small_corpus, "test", 7, length=19, seed=0)
    assert text.shape == (7, 20)
    assert domains.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert all(b"int" in bytes(text[i].tolist()) for i in (1, 4))


def test_the_list_of_packages_is_read_and_a_wrong_one_refused(tmp_path: Path) -> None:
    pinned = packages_of(ROOT / "data" / "models" / "corpus.json")
    assert all(len(package.sha256) == 64 for package in pinned)
    path = tmp_path / "corpus.json"
    for wrong in ("[]", "{", json.dumps({"packages": [{"name": "a"}]})):
        path.write_text(wrong)
        with pytest.raises(InputError, match="lists no packages"):
            packages_of(path)
