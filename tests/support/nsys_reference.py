"""Attribution by definition, one kernel at a time, straight from the SQLite file.

No sweep, no segments, no join: for each launch every range of its thread is looked at.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PID_MASK = ~0xFFFFFF


OPEN = 10**18
"""End of a range that was open when the capture closed: after every moment of it."""


@dataclass(frozen=True)
class Range:
    """A push/pop or start/end range, in the export's order."""

    tid: int
    start: int
    end: int
    kind: int
    domain_id: int
    domain: str | None
    text: str | None

    @property
    def order(self) -> tuple[Any, ...]:
        return (
            self.start,
            -self.end,
            self.kind,
            self.domain_id,
            self.text is None,
            self.text or "",
        )

    def covers(self, moment: int) -> bool:
        return self.start <= moment < self.end


class Reference:
    """The export as dictionaries, and who owns what."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        self._connection.row_factory = sqlite3.Row
        strings = {row["id"]: row["value"] for row in self._rows("StringIds")}
        self.kernels = self._rows("CUPTI_ACTIVITY_KIND_KERNEL")
        self.names = strings
        events = self._rows("NVTX_EVENTS")
        self._connection.close()
        for event in events:
            if event.get("text") is None:
                event["text"] = strings.get(event.get("textId"))
        domains: dict[tuple[int, int], str] = {}
        for event in events:
            if event["eventType"] == 75 and event["globalTid"] is not None:
                key = (event["globalTid"] & PID_MASK, event["domainId"] or 0)
                if event["text"] is not None:
                    domains[key] = min(domains.get(key, event["text"]), event["text"])
        self.ranges: dict[int, list[Range]] = {}
        for event in events:
            tid = event["globalTid"]
            end = OPEN if event["end"] is None else event["end"]
            if event["eventType"] in (59, 60) and tid is not None:
                if end < event["start"]:
                    continue
                domain_id = event["domainId"] or 0
                domain = "" if domain_id == 0 else domains.get((tid & PID_MASK, domain_id))
                self.ranges.setdefault(tid, []).append(
                    Range(
                        tid,
                        event["start"],
                        end,
                        event["eventType"],
                        domain_id,
                        domain,
                        event["text"],
                    )
                )
        for ranges in self.ranges.values():
            ranges.sort(key=lambda item: item.order)

    def _rows(self, table: str) -> list[dict[str, Any]]:
        try:
            return [dict(row) for row in self._connection.execute(f"SELECT * FROM {table}")]
        except sqlite3.OperationalError:
            return []

    def load_calls(self, path: Path) -> dict[tuple[int, int], tuple[int, int, int]]:
        """First start, last end and thread of each API call, by process and correlation id."""
        calls: dict[tuple[int, int], tuple[int, int, int]] = {}
        connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            rows = connection.execute(
                'SELECT globalTid, correlationId, start, "end" FROM CUPTI_ACTIVITY_KIND_RUNTIME'
            ).fetchall()
        except sqlite3.OperationalError:
            rows = []
        finally:
            connection.close()
        for tid, correlation, start, end in rows:
            if tid is None or correlation is None:
                continue
            key = (tid & PID_MASK, correlation)
            old = calls.get(key, (start, end, tid))
            calls[key] = (min(old[0], start), max(old[1], end), min(old[2], tid))
        return calls

    def owner(self, tid: int, moment: int) -> Range | None:
        """The innermost range open on a thread, `costprof` before other domains."""
        found = [r for r in self.ranges.get(tid, []) if r.kind == 59 and r.covers(moment)]
        return max(found, key=lambda r: (r.domain == "costprof", r.order), default=None)

    def parent(self, child: Range) -> Range | None:
        """The innermost range of the same stack that covers all of `child`."""
        siblings = self.ranges[child.tid]
        position = next(i for i, item in enumerate(siblings) if item is child)
        for item in reversed(siblings[:position]):
            if (
                child.kind == item.kind == 59
                and item.domain_id == child.domain_id
                and item.covers(child.start)
                and item.end >= child.end
            ):
                return item
        return None

    def path(self, item: Range) -> list[str | None]:
        """Texts from the outermost range to `item`."""
        above = self.parent(item)
        return [*(self.path(above) if above else []), item.text]


def attribution(path: Path) -> list[tuple[Any, ...]]:
    """Sorted rows (start, end, pid, correlation, name, verdict, launch, text, domain, path)."""
    reference = Reference(path)
    calls = reference.load_calls(path)
    rows: list[tuple[Any, ...]] = []
    for kernel in reference.kernels:
        key = (kernel.get("globalPid"), kernel.get("correlationId"))
        call = None if None in key else calls.get(key)  # type: ignore[arg-type]
        owner = None if call is None else reference.owner(call[2], call[0])
        verdict = "no_launch_row" if call is None else "no_range" if owner is None else "attributed"
        rows.append(
            (
                kernel["start"],
                kernel["end"],
                *key,
                reference.names.get(kernel.get("shortName")),
                verdict,
                call,
                owner and owner.text,
                owner and owner.domain,
                owner and tuple(reference.path(owner)),
            )
        )
    return sorted(rows, key=repr)
