"""The section of whole layers: all of it is made from a frame of held-out layers."""

from __future__ import annotations

import pyarrow as pa

from costprof.costmodel.devices import DeviceSpec
from costprof.costmodel.evaluation.baselines import EIGHT_BITS
from costprof.costmodel.evaluation.origin import FrameOrigin
from costprof.costmodel.report.accuracy import accuracy_figures
from costprof.costmodel.report.calls import Calls
from costprof.costmodel.report.figure import Figure, Section
from costprof.costmodel.report.joules import energy_figures
from costprof.costmodel.report.layers import layer_calls, layers_held_out
from costprof.costmodel.report.prediction import driver_figures
from costprof.costmodel.report.provenance import energy_kinds
from costprof.costmodel.report.speed import (
    Ceiling,
    roofline,
    surface_by_active,
    surface_by_choice,
)


def layer_section(frame: pa.Table, origin: FrameOrigin | None, spec: DeviceSpec) -> Section:
    """Return the figures of the held-out layers in `frame`, measured on the device `spec`.

    Without an `origin` nobody knows which device that is: only the power limit of `spec` counts,
    and the roofline, whose ceilings are the device's, is left out.
    """
    calls, held_out = layer_calls(frame), layers_held_out(frame)
    figures: list[Figure | None] = [*accuracy_figures(held_out)]
    kinds, device, of = "of a source that is not known", "a device that is not known", ""
    if origin is not None:
        kinds, device = energy_kinds(origin.energy_sources), origin.device
        of = f" of {origin.layers}"
        figures.append(
            roofline(
                calls,
                _datasheet(spec, set(origin.dtypes), set(calls.precision)),
                f"{spec.name} by its datasheet, operations in 8 bits at twice the rate of 16",
            )
        )
    figures += [
        surface_by_active(calls),
        surface_by_choice(*_one_rank(calls)),
        *energy_figures(calls, spec.power_limit_w, kinds),
        *driver_figures(calls, kinds, "", device),
    ]
    return Section(
        "Whole layers",
        f"The {len(calls)} held-out layers{of}: {held_out.how}.",
        [figure for figure in figures if figure is not None],
    )


def _one_rank(calls: Calls) -> tuple[Calls, str]:
    """The calls that were not sharded, where there are any, and which they are."""
    whole = calls.ranks == 1
    if whole.all() or not whole.any():
        return calls, ""
    return calls.take(whole), " of the layers that are not sharded"


def _datasheet(spec: DeviceSpec, dtypes: set[str], precisions: set[str]) -> list[Ceiling]:
    """Ceilings of the types at work; tensor cores multiply 8 bits twice as fast as 16."""
    rates = {name: rate for name, rate in spec.peak_flops.items() if name in dtypes}
    if precisions & set(EIGHT_BITS):
        rates["8 bits"] = 2.0 * spec.peak_flops["bfloat16"]
    return [
        Ceiling(f"{spec.name}, {name}", rate, spec.memory_bytes_per_s)
        for name, rate in rates.items()
    ]
