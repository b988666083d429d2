"""Which rows of two tables price the same thing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from costprof.core.errors import TableError
from costprof.costmodel.rows import CLASS_FIELDS, KEY_FIELDS, LAYER_FIELDS


@dataclass(frozen=True, slots=True)
class CurveRows:
    """Rows of one class, layer shape and config. `at` maps token counts to positions of rows.

    `fields` holds the columns that all of them share.
    """

    fields: dict[str, Any]
    at: dict[int, int]

    @property
    def exact(self) -> Hashable:
        """What names the curve: class, layer shape, config."""
        return tuple(self.fields[name] for name in KEY_FIELDS if name != "tokens")

    @property
    def any_version(self) -> Hashable:
        """The same, whatever the version of the kernel's source and of its framework."""
        library = (self.fields["framework"] or "").split(" ")[0]
        return (library, *(self.fields[name] for name in _ANY_VERSION))


_ANY_VERSION = (*CLASS_FIELDS, "op", "kernel", "cache_state", *LAYER_FIELDS, "config")
_SHARED = ("class_id", "kernel_source_hash", "framework", *_ANY_VERSION)


def curves_of(rows: pa.Table, whose: str) -> list[CurveRows]:
    """Return the curves of `rows`, in their order.

    Raises:
        TableError: two rows of one curve have the same token count.
    """
    columns = [rows[name].to_pylist() for name in _SHARED]
    found: dict[Hashable, CurveRows] = {}
    for position, (tokens, *values) in enumerate(
        zip(rows["tokens"].to_pylist(), *columns, strict=True)
    ):
        curve = CurveRows(dict(zip(_SHARED, values, strict=True)), {})
        curve = found.setdefault(curve.exact, curve)
        if curve.at.setdefault(tokens, position) != position:
            raise TableError(
                f"{whose} prices class {curve.fields['class_id']} at {tokens} tokens twice",
                "its rows cannot be told apart",
                "fit its dataset again",
            )
    return list(found.values())


def matched(
    before: list[CurveRows], after: list[CurveRows]
) -> tuple[list[tuple[CurveRows, CurveRows]], list[CurveRows], list[CurveRows]]:
    """Return the pairs of curves that price the same, and those of each side without a partner.

    First by class; then those left over that are the only ones of their kernel, shape and config in
    each whole table, whatever the version: a changed source changes the class, and is what one
    wants to compare.
    """
    same = {curve.exact: curve for curve in after}
    pairs = [(curve, same[curve.exact]) for curve in before if curve.exact in same]
    taken = {curve.exact for curve, _ in pairs}
    unique = _unique(after)
    lonely = [
        (curve, unique[name])
        for name, curve in _unique(before).items()
        if name in unique and not {curve.exact, unique[name].exact} & taken
    ]
    taken_before = taken | {curve.exact for curve, _ in lonely}
    taken_after = taken | {curve.exact for _, curve in lonely}
    return (
        pairs + lonely,
        [curve for curve in before if curve.exact not in taken_before],
        [curve for curve in after if curve.exact not in taken_after],
    )


def _unique(curves: list[CurveRows]) -> dict[Hashable, CurveRows]:
    count = Counter(curve.any_version for curve in curves)
    return {curve.any_version: curve for curve in curves if count[curve.any_version] == 1}
