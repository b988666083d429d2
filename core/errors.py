"""The one family of errors costprof raises on purpose.

Every message is one line of three parts: the fact, what follows from it, and the way out. The
command line prints that line and exits with `exit_code`; libraries catch `CostprofError`.
"""

from __future__ import annotations


class CostprofError(Exception):
    """A fact, its consequence and the way out, printed on one line.

    Args:
        fact: What is the case, naming the value or path at fault.
        consequence: What costprof will therefore not do.
        way_out: What the reader can do about it.
    """

    exit_code = 1

    def __init__(self, fact: str, consequence: str, way_out: str) -> None:
        super().__init__(fact, consequence, way_out)
        self.fact = fact
        self.consequence = consequence
        self.way_out = way_out

    def __str__(self) -> str:
        parts = (self.fact, self.consequence, self.way_out)
        return "; ".join(" ".join(part.split()) for part in parts if part)


class InputError(CostprofError):
    """An argument, preset, spec or file that cannot be used as given."""

    exit_code = 2


class ToolError(CostprofError):
    """An outside tool (nsys, ncu, a driver) is missing, too old or failed."""

    exit_code = 3


class ExportError(CostprofError):
    """A profiler export that is damaged, of another kind, or holds nothing to measure."""

    exit_code = 4


class DatasetError(CostprofError):
    """A dataset folder that is missing, incomplete or of another schema."""

    exit_code = 5


class TableError(CostprofError):
    """A cost table that is damaged, of another schema, or lacks what is asked of it."""

    exit_code = 6


class DeviceMismatchError(TableError):
    """A cost table measured on another device model than the one present."""

    exit_code = 7
