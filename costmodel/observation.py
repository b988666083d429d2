"""What was seen at run time of calls that a table prices, and files of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from costprof.core.errors import InputError

MOST_TOKENS = 10**9
"""The most tokens that one call can be of."""
_HOTTEST_C = 1e3


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One call as it was seen: a layer of `counts` [E], or `expert` alone on `tokens` tokens.

    `latency_us` is the median of what was seen, `energy_mj` active energy (what the call adds to
    what the device draws idle), as in a table. `power_limit_w` and `temperature_c` (°C) are the
    device's at the time; None where not known.

    Raises:
        InputError: the fields say no call, or hold what no call can take.
    """

    latency_us: float
    counts: Sequence[int] | None = None
    expert: int | None = None
    tokens: int | None = None
    energy_mj: float | None = None
    power_limit_w: float | None = None
    temperature_c: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no call; keep `counts` as a tuple, whatever sequence was given."""
        fault = _fault(self)
        if fault:
            raise InputError(
                f"an observation {fault}",
                "no table can be corrected by it",
                "give latency_us and either counts or expert with tokens",
            )
        if self.counts is not None:
            object.__setattr__(self, "counts", tuple(map(operator.index, self.counts)))


COLUMNS = tuple(field.name for field in dataclasses.fields(Observation))


def read_observations(path: str | Path) -> list[Observation]:
    """Return the observations in a .parquet, .csv or .json file, a row each.

    Columns are the fields of `Observation`; those not known may be missing or empty. `counts` is a
    list; in CSV its JSON text. A JSON file holds a list of objects.

    Raises:
        InputError: there is no such file, it cannot be read, or a row is no observation.
    """
    path = Path(path)
    readers = {".parquet": _parquet_rows, ".csv": _csv_rows, ".json": _json_rows}
    if path.suffix not in readers:
        raise _refused(f"{path} is no file of type .parquet, .csv or .json")
    if not path.is_file():
        raise _refused(f"there is no file {path}")
    try:
        rows = readers[path.suffix](path)
    except (pa.ArrowException, csv.Error, OSError, ValueError, RecursionError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise _refused(f"{path} cannot be read ({first_line})") from error
    unknown = sorted({str(name) for row in rows for name in row} - set(COLUMNS))
    if unknown:
        raise _refused(f"{path} has a column {unknown[0]!r}")
    if not rows:
        raise _refused(f"{path} has no rows")
    return [_observation(path, number, row) for number, row in enumerate(rows, start=1)]


def _fault(seen: Observation) -> str:
    """Return what is wrong with `seen`; nothing where all is well."""
    alone = (seen.expert is not None, seen.tokens is not None)
    if seen.counts is not None and any(alone):
        return "is of counts and of an expert"
    if seen.counts is None and not all(alone):
        return "names no call"
    for name in ("latency_us", "energy_mj", "power_limit_w"):
        value = getattr(seen, name)
        if value is not None and (isinstance(value, bool) or not 0.0 < value < math.inf):
            return f"has {name} {value}, not a positive number"
    heat = seen.temperature_c
    if heat is not None and (isinstance(heat, bool) or not abs(heat) <= _HOTTEST_C):
        return f"has temperature_c {heat}"
    numbers = [seen.expert, seen.tokens] if seen.counts is None else seen.counts
    try:
        if any(isinstance(number, bool) for number in numbers):
            return "has a count or expert that is not a whole number"
        if any(operator.index(number) < 0 for number in numbers):  # type: ignore[arg-type]
            return "has a negative count or expert"
    except TypeError:
        return "has a count or expert that is not a whole number"
    tokens = [seen.tokens or 0] if seen.counts is None else seen.counts
    if not any(tokens):
        return "is of a call without tokens"
    if max(tokens) > MOST_TOKENS:
        return f"has {max(tokens)} tokens, more than {MOST_TOKENS}"
    return ""


def _observation(path: Path, number: int, row: dict[str, Any]) -> Observation:
    if row.get("latency_us") is None:
        raise _refused(f"{path} has no latency_us in row {number}")
    try:
        return Observation(**row)
    except InputError as error:
        fault = error.fact.removeprefix("an observation ")
    except TypeError:
        fault = "holds what is not a number"
    raise _refused(f"row {number} of {path} {fault}")


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        return [_known(row) for row in file.read(use_threads=False).to_pylist()]


def _json_rows(path: Path) -> list[dict[str, Any]]:
    rows = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("not a list of objects")
    return rows


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, restkey="more than named", restval=""))
    return [
        {name: _csv_value(name, text) for name, text in row.items() if text != ""} for row in rows
    ]


def _csv_value(name: str, text: Any) -> Any:
    if name in ("expert", "tokens"):
        return int(text)
    if name == "counts":
        return json.loads(text)
    return float(text) if name in COLUMNS else text


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` without NaN, which says no more than NULL, and with whole numbers as such.

    Integers of a column that is empty in places are often written as floating-point numbers.
    """
    known = {}
    for name, value in row.items():
        if isinstance(value, float):
            if math.isnan(value):
                continue
            if name in ("expert", "tokens") and value.is_integer():
                value = int(value)
        known[name] = value
    return known


def _refused(fact: str) -> InputError:
    return InputError(
        fact,
        "no table was corrected",
        f"give a .parquet, .csv or .json file of columns {', '.join(COLUMNS)}",
    )
