from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from costprof.core.errors import InputError
from costprof.profiler.spec import load_spec, parse_spec

VALID: dict[str, Any] = {
    "name": "s",
    "experts": {"a": {"d_model": 64, "d_ff": 64}},
    "measure": [{"expert": "a", "tokens": [1]}],
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(VALID), **changes}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (changed(measure=[{"expert": "a", "tokens": [-4]}]), "measure.0.tokens.0"),
        (changed(measure=[{"expert": "a", "tokens": []}]), "measure.0.tokens"),
        (changed(measure=[{"expert": "b", "tokens": [1]}]), "expert 'b' is not among a"),
        (changed(measure=[]), "neither a 'measure' nor a 'layer'"),
        (changed(colour="red"), "colour"),
        (changed(device="tpu"), "device"),
        (
            changed(moe=[{"name": "m", "top_k": 3, "experts": [{"expert": "a", "count": 2}]}]),
            "fewer experts than its top_k",
        ),
        (changed(timing={"min_repetitions": 9, "max_repetitions": 5}), "max_repetitions is below"),
    ],
)
def test_a_wrong_spec_is_refused_in_one_line_that_names_the_key(
    values: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(values, source="file.toml")
    text = str(caught.value)
    assert words in text
    assert text.startswith("file.toml: ")
    assert "\n" not in text


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sweep.toml"
    path.write_text("name = \n")
    with pytest.raises(InputError, match="is not TOML"):
        load_spec(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_spec(tmp_path / "none.toml")
