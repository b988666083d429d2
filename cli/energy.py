"""Hands the power model of `costmodel` to the sweep, which must not know of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from costprof.core.device import DeviceFingerprint
    from costprof.profiler.rows import EnergyModel


def energy_model(device: DeviceFingerprint, threads: int | None = None) -> EnergyModel:
    """Return a model of the energy of calls on `device`; on a CPU `threads` cores are at work."""
    from costprof.costmodel.physics import modelled_energy, spec_for
    from costprof.profiler.rows import Energy

    spec = spec_for(device, units=threads)

    def price(*, flops: float, bytes: float, latency_us: float) -> Energy:
        return Energy(
            **modelled_energy(spec, flops, bytes, latency_us)._asdict(), source="modelled"
        )

    return price
