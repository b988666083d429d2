"""One line of the doctor's report."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from costprof.core.errors import CostprofError

Status = Literal["ok", "degraded", "missing"]


@dataclass(frozen=True, slots=True)
class Check:
    """What was looked for, what was found, what follows from it, and the way out.

    `ok` works, `degraded` works in part or is less exact, `missing` does not work. `consequence`
    and `way_out` are empty where there is nothing to say.
    """

    name: str
    status: Status
    found: str
    consequence: str = ""
    way_out: str = ""

    def to_dict(self) -> dict[str, str]:
        """Return the fields as plain JSON values."""
        return dataclasses.asdict(self)


def from_error(name: str, error: CostprofError, status: Status = "missing") -> Check:
    """Return what a real attempt raised as a line of the report."""
    parts = (error.fact, error.consequence, error.way_out)
    return Check(name, status, *(" ".join(part.split()) for part in parts))
