"""What a page is made of: figures, each with the numbers behind it as a table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class Numbers:
    """A table: names of its columns, and rows of as many cells. `bars` are drawn in these columns.

    A bar's length is the value's share of the largest in its column.
    """

    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    bars: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return columns and rows as plain JSON values."""
        return {"columns": list(self.columns), "rows": [list(row) for row in self.rows]}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: `svg` is inline SVG, empty where the table is the figure.

    `legend` names the classes of its marks; `caption` says what was drawn and how to read it.
    """

    name: str
    title: str
    caption: str
    numbers: Numbers
    svg: str = ""
    legend: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that belong together."""

    title: str
    intro: str
    figures: list[Figure]


@dataclass(frozen=True, slots=True)
class Report:
    """A page: facts of the dataset, what was measured and what modelled, and sections."""

    title: str
    facts: tuple[tuple[str, str], ...]
    provenance: tuple[str, ...]
    sections: list[Section] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the drawings as plain JSON values."""
        return {
            "title": self.title,
            "facts": dict(self.facts),
            "provenance": list(self.provenance),
            "sections": [
                {
                    "title": section.title,
                    "intro": section.intro,
                    "figures": {
                        figure.name: {
                            "title": figure.title,
                            "caption": figure.caption,
                            **figure.numbers.to_dict(),
                        }
                        for figure in section.figures
                    },
                }
                for section in self.sections
            ],
        }
