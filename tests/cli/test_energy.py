"""The power model as a sweep gets it."""

from __future__ import annotations

import pytest

from costprof.cli.energy import energy_model
from costprof.core.device import DeviceFingerprint


def test_a_sweep_without_a_counter_gets_modelled_energy() -> None:
    device = DeviceFingerprint(kind="cpu", name="some CPU", units=4)
    one = energy_model(device, threads=1)(flops=1e6, bytes=1e6, latency_us=100.0)
    four = energy_model(device)(flops=1e6, bytes=1e6, latency_us=100.0)
    assert one is not None
    assert four is not None
    assert one.source == "modelled"
    assert one.low_mj < one.active_mj < one.high_mj
    assert four.idle_mj == pytest.approx(4 * one.idle_mj)
