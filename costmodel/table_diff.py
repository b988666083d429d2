"""What became slower or hungrier from one table to another, beyond the doubt in both.

The rule. Of each row that both tables price, the difference of the log medians is compared with the
doubt of both: the standard deviations that their (p05, p95) say, added as squares (see
`costprof.costmodel.significance`). The interval of a measured row is the spread of its calls, which
is wider than the doubt of their median: a cautious choice, as the number of calls is not in a
table. A curve - one class, layer shape and config - is tested as a whole too: the mean of its log
differences, whose standard deviation shrinks with the number of rows where both tables measured
them. Rows that either table only modelled follow from others; where a curve has rows measured in
both, they decide nothing. Rows of curves without such err together: their mean is as doubtful as
one of them.

All tests of one quantity, of rows and curves, are one family, of which at most `FALSE_DISCOVERIES`
may be false (Benjamini-Hochberg). A change is called one where it is significant and beyond the
threshold: `|ln(after / before)| > ln(1 + threshold)`, alike in both directions.

Energies are compared only where both tables have them from one source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from costprof.core.errors import InputError, TableError
from costprof.costmodel.significance import Array, discoveries, log_std, two_sided_p
from costprof.costmodel.table_match import CurveRows, curves_of, matched

Quantity = Literal["latency_us", "energy_mj"]
Verdict = Literal["worse", "better", "same"]
QUANTITIES: tuple[Quantity, ...] = ("latency_us", "energy_mj")
FALSE_DISCOVERIES = 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """A median before and after; of a curve, the geometric means over its tested token counts.

    `p_value` is None where nothing was tested: the row is modelled in a curve that has measured
    ones.
    """

    before: float
    after: float
    p_value: float | None
    verdict: Verdict

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before


@dataclass(frozen=True, slots=True)
class CurveDiff:
    """Changes of one curve, by quantity: as a whole, and by token count.

    A quantity that cannot be compared at any token count is absent. `fields` and `fields_after` are
    the columns the rows share in each table; they differ in the version of the kernel at most.
    """

    fields: dict[str, Any]
    fields_after: dict[str, Any]
    whole: dict[Quantity, Change]
    by_tokens: dict[Quantity, dict[int, Change]]
    tokens_only_before: tuple[int, ...]
    tokens_only_after: tuple[int, ...]

    def found(self, quantity: Quantity, verdict: Verdict) -> bool:
        """Return whether the curve, or any of its rows, is of `verdict` in `quantity`."""
        whole = self.whole.get(quantity)
        rows = self.by_tokens.get(quantity, {}).values()
        return any(each.verdict == verdict for each in (*([whole] if whole else []), *rows))


@dataclass(frozen=True, slots=True)
class TableDiff:
    """Two tables compared: the curves of both, and those (with rows' counts) of one alone."""

    threshold: float
    curves: tuple[CurveDiff, ...]
    only_before: tuple[tuple[dict[str, Any], int], ...]
    only_after: tuple[tuple[dict[str, Any], int], ...]

    @property
    def is_worse(self) -> bool:
        """Whether anything is slower or hungrier."""
        return any(curve.found(name, "worse") for curve in self.curves for name in QUANTITIES)


def diff_tables(before: pa.Table, after: pa.Table, threshold: float = 0.05) -> TableDiff:
    """Compare rows of `TABLE_SCHEMA`; `threshold` is relative.

    Raises:
        InputError: `threshold` is negative or not finite.
        TableError: there are no rows in common, or none that can be compared.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise InputError(
            f"the threshold is {threshold}", "nothing was compared", "give 0.05 for 5 percent"
        )
    pairs, only_before, only_after = matched(
        curves_of(before, "the first table"), curves_of(after, "the second table")
    )
    apart = [(left, right) for left, right in pairs if not left.at.keys() & right.at.keys()]
    pairs = [(left, right) for left, right in pairs if left.at.keys() & right.at.keys()]
    if not pairs:
        raise TableError(
            "the tables have no rows in common",
            "they cannot be compared",
            "measure the same classes at the same token counts with both",
        )
    changes = {name: _changes(before, after, pairs, name, threshold) for name in QUANTITIES}
    if not any(whole for each in changes.values() for whole, _ in each):
        raise TableError(
            "the rows in common have no medians with intervals",
            "they cannot be compared",
            "fit the datasets of both again",
        )
    curves = [
        CurveDiff(
            fields=left.fields,
            fields_after=right.fields,
            whole={name: whole for name in QUANTITIES if (whole := changes[name][i][0])},
            by_tokens={name: rows for name in QUANTITIES if (rows := changes[name][i][1])},
            tokens_only_before=tuple(sorted(left.at.keys() - right.at.keys())),
            tokens_only_after=tuple(sorted(right.at.keys() - left.at.keys())),
        )
        for i, (left, right) in enumerate(pairs)
    ]
    return TableDiff(
        threshold=threshold,
        curves=tuple(curves),
        only_before=_counted(only_before + [left for left, _ in apart]),
        only_after=_counted(only_after + [right for _, right in apart]),
    )


def _counted(curves: list[CurveRows]) -> tuple[tuple[dict[str, Any], int], ...]:
    return tuple((curve.fields, len(curve.at)) for curve in curves)


@dataclass(frozen=True, slots=True)
class _Common:
    """Comparable rows [n] of a pair of curves; `std` is of ln(after / before)."""

    tokens: npt.NDArray[np.int64]
    before: Array
    after: Array
    std: Array
    decides: npt.NDArray[np.bool_]
    measured: bool

    @property
    def difference(self) -> Array:
        return np.log(self.after / self.before)

    def whole(self) -> tuple[float, float]:
        """Return the mean log difference of the rows that decide, and its standard deviation."""
        squares = self.std[self.decides] ** 2
        variance = squares.mean() / (len(squares) if self.measured else 1)
        return float(self.difference[self.decides].mean()), math.sqrt(variance)


def _changes(
    before: pa.Table,
    after: pa.Table,
    pairs: list[tuple[CurveRows, CurveRows]],
    quantity: Quantity,
    threshold: float,
) -> list[tuple[Change | None, dict[int, Change]]]:
    """Return for each pair of curves the change of the whole and those by token count."""
    commons = _commons(before, after, pairs, quantity)
    filled = [common for common in commons if len(common.tokens)]
    if not filled:
        return [(None, {}) for _ in pairs]
    wholes = np.array([common.whole() for common in filled])  # [curves, 2]
    difference = np.concatenate([wholes[:, 0], *(common.difference for common in filled)])
    std = np.concatenate([wholes[:, 1], *(common.std for common in filled)])
    decides = np.concatenate([np.ones(len(filled), bool), *(each.decides for each in filled)])
    p_values = np.where(decides, two_sided_p(difference, std), np.nan)
    significant = discoveries(p_values, FALSE_DISCOVERIES)
    beyond = np.abs(difference) > math.log1p(threshold)
    verdicts: list[Verdict] = [
        "same" if not real else "worse" if change > 0 else "better"
        for real, change in zip(significant & beyond, difference, strict=True)
    ]

    def change(index: int, old: float, new: float) -> Change:
        p_value = float(p_values[index]) if decides[index] else None
        return Change(old, new, p_value, verdicts[index])

    found: list[tuple[Change | None, dict[int, Change]]] = []
    whole, row = 0, len(filled)
    for common in commons:
        if not len(common.tokens):
            found.append((None, {}))
            continue
        means = (_geometric_mean(side[common.decides]) for side in (common.before, common.after))
        rows = {
            int(tokens): change(row + i, float(common.before[i]), float(common.after[i]))
            for i, tokens in enumerate(common.tokens)
        }
        found.append((change(whole, *means), rows))
        whole, row = whole + 1, row + len(rows)
    return found


def _commons(
    before: pa.Table,
    after: pa.Table,
    pairs: list[tuple[CurveRows, CurveRows]],
    quantity: Quantity,
) -> list[_Common]:
    old, old_std = _medians(before, quantity)
    new, new_std = _medians(after, quantity)
    tiers = [np.array(rows["tier"].to_pylist(), dtype=object) for rows in (before, after)]
    sources = [np.array(rows["energy_source"].to_pylist(), object) for rows in (before, after)]
    found = []
    for left, right in pairs:
        tokens = np.array(sorted(left.at.keys() & right.at.keys()), dtype=np.int64)
        i = np.array([left.at[int(n)] for n in tokens])
        j = np.array([right.at[int(n)] for n in tokens])
        usable = np.isfinite(old_std[i] + new_std[j])
        if quantity == "energy_mj":
            usable &= sources[0][i] == sources[1][j]
        i, j = i[usable], j[usable]
        measured = (tiers[0][i] == "measured") & (tiers[1][j] == "measured")
        found.append(
            _Common(
                tokens=tokens[usable],
                before=old[i],
                after=new[j],
                std=np.hypot(old_std[i], new_std[j]),
                decides=measured if measured.any() else np.ones(len(i), dtype=np.bool_),
                measured=bool(measured.any()),
            )
        )
    return found


def _medians(rows: pa.Table, quantity: Quantity) -> tuple[Array, Array]:
    """Return medians [n] and the standard deviations of their logs [n], NaN where unusable."""
    p05, p50, p95 = (
        rows[f"{quantity}_{name}"].to_numpy().astype(np.float64) for name in ("p05", "p50", "p95")
    )
    return p50, log_std(p05, p50, p95)


def _geometric_mean(values: Array) -> float:
    return float(np.exp(np.log(values).mean()))
