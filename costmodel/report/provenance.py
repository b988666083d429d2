"""What a page says of where its numbers come from."""

from __future__ import annotations

from collections.abc import Iterable

_KINDS = {
    "modelled": "modelled from device constants, operations, bytes and time; no meter was read",
    "power_samples": "measured: mean power of samples times latency",
    "nvml_counter": "measured by the GPU's energy counter",
    "nvml_integral": "measured as the integral of the GPU's power readings",
    "external_meter": "measured by a wall meter",
}


def energy_kinds(sources: Iterable[str | None]) -> str:
    """Return how energy of these `sources` became known, as a caption says it."""
    return " and ".join(_KINDS.get(each, each) for each in sorted({s for s in sources if s}))


def provenance(sources: Iterable[str | None] | None, *, untrusted: int) -> tuple[str, ...]:
    """Return the lines on latency, work and energy.

    `sources` are those of energy; None where there is energy of a source nobody told. `untrusted`
    counts rows of doubtful power.
    """
    said = [
        "Latency: measured. Predictions of it are called so, and were made without the row.",
        "Operations and bytes: computed from shapes, not counted.",
    ]
    known = sorted({source for source in sources or () if source})
    said += [f"Energy and power ({each}): {energy_kinds([each])}." for each in known]
    if sources is None:
        said.append("Energy and power: of a source that is not known.")
    elif not known:
        said.append("Energy and power: not known; figures of them are left out.")
    if untrusted:
        said.append(
            f"{untrusted} rows whose power was sampled too shortly count in errors of energy over "
            "all rows and in nothing else of energy."
        )
    return tuple(said)
