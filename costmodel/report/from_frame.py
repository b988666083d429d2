"""A report from the frame that `costprof evaluate --out` wrote: nothing is fitted again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import InputError
from costprof.costmodel.devices import spec_for
from costprof.costmodel.evaluation.origin import FrameOrigin
from costprof.costmodel.report.figure import Report
from costprof.costmodel.report.layer_section import layer_section
from costprof.costmodel.report.provenance import provenance

_TEXTS = ("split", "framework", "kernel", "precision", "distribution", "shape")
_NUMBERS = (
    *("hidden", "inner", "top_k", "experts", "ep_size", "tp_size", "tokens", "flops", "bytes"),
    *("latency_us", "latency_us_p05", "latency_us_p50", "latency_us_p95"),
    *("linear_us", "roofline_us", "boosting_us", "analytic_us"),
    *("energy_mj", "energy_mj_p05", "energy_mj_p50", "energy_mj_p95"),
    *("linear_mj", "constant_tdp_mj", "power_w", "power_limit_w"),
)
_BOOLEANS = ("energy_trusted", "power_capped")
_POSITIVE = (
    *("hidden", "inner", "top_k", "experts", "ep_size", "tp_size", "tokens", "flops", "bytes"),
    *("latency_us", "latency_us_p05", "latency_us_p50", "latency_us_p95", "power_limit_w"),
)
_LEFT_OUT = (
    "Made from the frame of an evaluation. What only the dataset has is left out: single experts, "
    "rows that failed, and what timed the layers."
)
_UNNAMED = " The frame names neither device nor energy source: the roofline is left out as well."


def read_frame(path: Path) -> pa.Table:
    """Return the frame at `path`, of numbers in float64.

    Raises:
        InputError: there is none, it is damaged, or holds something else.
    """
    if not path.is_file():
        raise _refused(f"there is no file {path}")
    try:
        with pq.ParquetFile(path) as file:
            frame = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise _refused(f"{path} cannot be read as Parquet ({first_line})") from error
    kinds = {
        **dict.fromkeys(_TEXTS, pa.string()),
        **dict.fromkeys(_NUMBERS, pa.float64()),
        **dict.fromkeys(_BOOLEANS, pa.bool_()),
    }
    if not frame.num_rows:
        raise _refused(f"{path} has no rows")
    for name, kind in kinds.items():
        at = frame.schema.get_field_index(name)
        if at < 0:
            raise _refused(f"{path} has no column {name!r}")
        try:
            frame = frame.set_column(at, name, frame[name].cast(kind))
        except pa.ArrowException as error:
            raise _refused(f"column {name!r} of {path} is {frame[name].type}") from error
    for name in (*_TEXTS, *_POSITIVE):
        if frame[name].null_count or (name in _POSITIVE and not _positive(frame[name])):
            raise _refused(f"{path} has rows without a usable {name}")
    return frame


def frame_report(frame: pa.Table, name: str) -> Report:
    """Return the report of a `frame` as `read_frame` returns it; `name` where it says none."""
    origin = FrameOrigin.of_frame(frame)
    limit_w = float(pc.max(frame["power_limit_w"]).as_py())
    device = origin.device if origin else ""
    spec = spec_for(DeviceFingerprint(kind="gpu", name=device, power_limit_w=limit_w))
    section = layer_section(frame, origin, spec)
    sources = origin.energy_sources if origin else None
    if frame["energy_mj"].null_count == frame.num_rows:
        sources = ()
    of = f" of {origin.layers}" if origin else ""
    constants = f"{spec.name}, " if origin else ""
    return Report(
        title=origin.dataset if origin else name,
        facts=(
            ("Device", device or "not known"),
            ("Rows", f"{frame.num_rows} held-out layers{of}"),
            ("Software", ", ".join(sorted(pc.unique(frame["framework"]).to_pylist()))),
            ("Device constants", f"{constants}power limit {limit_w:.0f} W"),
        ),
        provenance=(
            *provenance(sources, untrusted=_untrusted(frame)),
            _LEFT_OUT + ("" if origin else _UNNAMED),
        ),
        sections=[section],
    )


def _untrusted(frame: pa.Table) -> int:
    known = pc.is_valid(frame["energy_mj"])
    doubted = pc.invert(frame["energy_trusted"].fill_null(False))
    return int(pc.sum(pc.and_(known, doubted)).as_py() or 0)


def _positive(column: pa.ChunkedArray) -> bool:
    values = column.to_numpy()
    return bool((np.isfinite(values) & (values > 0.0)).all())


def _refused(fact: str) -> InputError:
    return InputError(
        fact, "no report was made", "give --frame what costprof evaluate DIR --out FRAME wrote"
    )
