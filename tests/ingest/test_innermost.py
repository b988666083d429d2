"""The stack sweep against a look at every range for every moment."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from costprof.profiler.nsys.innermost import NO_RANGE, RANGE_COLUMNS, Event, Segment, StackSweep

_DOMAINS = {0: "", 1: "costprof", 2: None}


@st.composite
def _events(draw: st.DrawFn) -> list[Event]:
    events = []
    for _ in range(draw(st.integers(0, 12))):
        start = draw(st.integers(0, 15))
        domain = draw(st.sampled_from(sorted(_DOMAINS)))
        events.append(
            (
                draw(st.integers(1, 2)),
                start,
                draw(st.integers(start, 16)),
                draw(st.sampled_from([True, True, True, False])),
                domain,
                _DOMAINS[domain],
                draw(st.sampled_from("ab")),
            )
        )
    return sorted(events, key=lambda e: (e[0], e[1], -e[2], not e[3], e[4], e[6]))


def _sweep(events: list[Event], batch: int) -> tuple[list[Segment], list[dict[str, Any]]]:
    sweep = StackSweep()
    segments: list[Segment] = []
    ranges: list[dict[str, Any]] = []
    for at in range(0, len(events) + batch, batch):
        part = events[at : at + batch]
        if part:
            sweep.add(part)
        else:
            sweep.finish()
        segments += sweep.segments
        ranges += [dict(zip(RANGE_COLUMNS, row, strict=True)) for row in sweep.ranges]
        sweep.segments, sweep.ranges = [], []
    return segments, ranges


@settings(max_examples=300, deadline=None)
@given(events=_events(), batch=st.integers(1, 5))
def test_segments_name_the_owner_at_every_moment(events: list[Event], batch: int) -> None:
    segments, _ = _sweep(events, batch)
    for thread in (1, 2):
        own = [(at, owner) for tid, at, owner in segments if tid == thread]
        moments = [at for at, _ in own]
        # Disjoint, in order, and each a change: what the as-of join relies on.
        assert moments == sorted(set(moments))
        owners = [NO_RANGE, *(owner for _, owner in own)]
        assert all(a != b for a, b in itertools.pairwise(owners))
        for moment in range(-1, 18):
            found = next((owner for at, owner in reversed(own) if at <= moment), NO_RANGE)
            open_now = [
                (event[5] == "costprof", index)
                for index, event in enumerate(events)
                if event[0] == thread and event[3] and event[1] <= moment < event[2]
            ]
            assert found == (max(open_now)[1] if open_now else NO_RANGE)


@settings(max_examples=300, deadline=None)
@given(events=_events(), batch=st.integers(1, 5))
def test_every_range_comes_out_once_with_its_parent(events: list[Event], batch: int) -> None:
    _, ranges = _sweep(events, batch)
    assert sorted(row["range_id"] for row in ranges) == list(range(len(events)))
    for row in ranges:
        child = events[row["range_id"]]
        assert (row["global_tid"], row["start_ns"], row["end_ns"]) == child[:3]
        above = [
            index
            for index, event in enumerate(events[: row["range_id"]])
            if child[3]
            and event[3]
            and (event[0], event[4]) == (child[0], child[4])
            and event[1] <= child[1] < event[2]
            and event[2] >= child[2]
        ]
        assert row["parent_id"] == (above[-1] if above else None)
        assert row["kind"] == ("push_pop" if child[3] else "start_end")
        assert 0 <= row["self_ns"] <= child[2] - child[1]


def test_rows_come_out_while_ranges_end() -> None:
    sweep = StackSweep()
    sweep.add([(1, i * 10, i * 10 + 5, True, 0, "", "x") for i in range(100)])
    assert len(sweep.ranges) == 99
    sweep.ranges = []
    sweep.finish()
    assert [row[0] for row in sweep.ranges] == [99]
