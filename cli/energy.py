"""Join the power model to the sweep, which knows nothing of cost models."""

from __future__ import annotations

from costprof.core.device import DeviceFingerprint
from costprof.costmodel.physics import modelled_energy, spec_for
from costprof.profiler.rows import Energy, EnergyModel


def energy_model(device: DeviceFingerprint, *, threads: int | None = None) -> EnergyModel:
    """Return the power model of `device`; on a CPU, of the `threads` cores that work."""
    spec = spec_for(device, units=threads)

    def model(*, flops: float, bytes: float, latency_us: float) -> Energy:
        value = modelled_energy(spec, flops, bytes, latency_us)
        return Energy(**value._asdict(), source="modelled")

    return model
