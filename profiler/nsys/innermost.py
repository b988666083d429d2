"""Which NVTX range is innermost on a thread at any moment: one sweep over the sorted ranges.

Push/pop ranges form one stack per thread and domain. The sweep walks the ranges of a thread in
order of start and yields disjoint segments `[at, next at)`, each owned by at most one range, so
that a later as-of join needs a single comparison. Where several domains have a range open, the
`costprof` domain goes before others, then the range that began last. A range covers the moments
`start <= t < end`.

In an intact capture ranges of one stack nest. Those of a clipped one may not; the rules then are:
the innermost range is the one that began last, and the parent is the innermost open range that
does not end before the child does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from costprof.profiler.nsys.schema import COSTPROF_DOMAIN

Event = tuple[int, int, int, bool, int, str | None, str | None]
"""Thread, start_ns, end_ns, nests, domain id, domain name, text."""

NO_RANGE = -1


Segment = tuple[int, int, int]
"""Thread, at_ns, range id or NO_RANGE."""

RANGE_COLUMNS = (
    "range_id",
    "parent_id",
    "depth",
    "kind",
    "domain",
    "text",
    "global_tid",
    "start_ns",
    "end_ns",
    "self_ns",
    "path",
)

RangeRow = tuple[int | str | tuple[str | None, ...] | None, ...]
"""One value per name of `RANGE_COLUMNS`."""


@dataclass(slots=True)
class _Open:
    range_id: int
    parent: _Open | None
    depth: int
    event: Event
    preferred: bool
    path: tuple[str | None, ...]
    child_ns: int = 0


class StackSweep:
    """Takes events sorted by (thread, start, -end) and collects rows in `segments` and `ranges`.

    Memory is bounded by the ranges open at one time if the caller empties the two now and then.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self.ranges: list[RangeRow] = []
        self._thread: int | None = None
        self._alive: list[_Open] = []
        self._next_end = 0
        self._next_id = 0
        self._segment: tuple[int, int] | None = None
        self._owner = NO_RANGE

    def add(self, events: Iterable[Event]) -> None:
        """Take the next events. Range ids count up from 0 in their order."""
        for event in events:
            thread, start, end, nests = event[:4]
            if thread != self._thread:
                self._leave_thread()
                self._thread = thread
            if self._alive and self._next_end <= start:
                self._close(start)
            opened = self._open(event)
            if not nests or end <= start:
                self._emit_range(opened)
                continue
            self._alive.append(opened)
            self._next_end = min(self._next_end, end) if len(self._alive) > 1 else end
            self._emit_segment(start)

    def finish(self) -> None:
        """Close what is still open; call once, after the last event."""
        self._leave_thread()

    def _open(self, event: Event) -> _Open:
        _, _, end, nests, domain_id, domain, text = event
        parent = None
        if nests:
            for candidate in reversed(self._alive):
                if candidate.event[4] == domain_id and candidate.event[2] >= end:
                    parent = candidate
                    break
        opened = _Open(
            self._next_id,
            parent,
            0 if parent is None else parent.depth + 1,
            event,
            domain == COSTPROF_DOMAIN,
            (text,) if parent is None else (*parent.path, text),
        )
        self._next_id += 1
        if parent is not None:
            parent.child_ns += end - event[1]
        return opened

    def _close(self, until: int) -> None:
        """Close every range that ends at or before `until`, in order of end."""
        while self._alive and self._next_end <= until:
            at = self._next_end
            for ended in self._alive:
                if ended.event[2] == at:
                    self._emit_range(ended)
            self._alive = [item for item in self._alive if item.event[2] != at]
            self._next_end = min((item.event[2] for item in self._alive), default=0)
            self._emit_segment(at)

    def _leave_thread(self) -> None:
        if self._thread is None:
            return
        if self._alive:
            self._close(max(item.event[2] for item in self._alive))
        self._flush_segment()
        self._owner = NO_RANGE
        self._thread = None

    def _emit_segment(self, at: int) -> None:
        """Note the owner from `at` on; of several changes at one moment the last counts."""
        owner = max(self._alive, key=lambda item: (item.preferred, item.range_id), default=None)
        if self._segment is not None and self._segment[0] != at:
            self._flush_segment()
        self._segment = (at, NO_RANGE if owner is None else owner.range_id)

    def _flush_segment(self) -> None:
        if (
            self._thread is not None
            and self._segment is not None
            and self._segment[1] != self._owner
        ):
            at, self._owner = self._segment
            self.segments.append((self._thread, at, self._owner))
        self._segment = None

    def _emit_range(self, item: _Open) -> None:
        thread, start, end, nests, _, domain, text = item.event
        self.ranges.append(
            (
                item.range_id,
                None if item.parent is None else item.parent.range_id,
                item.depth,
                "push_pop" if nests else "start_end",
                domain,
                text,
                thread,
                start,
                end,
                # Siblings that overlap, in a clipped capture, can add up to more than the parent.
                max(0, end - start - item.child_ns),
                item.path,
            )
        )
