"""A device whose power is known: 50 W, and 150 W while a kernel of the test runs.

The processes are real, only what they read is made up: the kernel stamps a file, and a reader in
the sampler's process sees by the stamp whether it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

KERNELS = """
import mmap, struct, time
from pathlib import Path

with Path(__file__).with_name("stamp").open("r+b") as file:
    STAMP = mmap.mmap(file.fileno(), 8)

def busy(x, w1, w2):
    STAMP[:] = struct.pack("d", time.monotonic() + 0.02)
    time.sleep(0.002)
    return x

def raises(x, w1, w2):
    raise RuntimeError("no such call")
"""

READERS = """
import mmap, os, struct, time
from pathlib import Path
from costprof.core.errors import ToolError
from costprof.profiler.energy.nvml import Conditions

with Path(__file__).with_name("stamp").open("r+b") as file:
    STAMP = mmap.mmap(file.fileno(), 8)
IDLE_W, BUSY_W, TICK_S = 50.0, 150.0, 0.05

class Reader:
    temp_c = 40.0
    lives_s = float("inf")

    def __init__(self, device):
        self.began = self.last = time.monotonic()
        self.energy = self.shown = 1000.0
        self.tick = 0

    def now_w(self):
        (until,) = struct.unpack("d", STAMP[:])
        return BUSY_W if time.monotonic() < until else IDLE_W

    def counter_mj(self):
        now = time.monotonic()
        if now - self.began > self.lives_s:
            os._exit(9)
        self.energy += self.now_w() * (now - self.last) * 1e3
        self.last = now
        if int(now / TICK_S) != self.tick:
            self.tick, self.shown = int(now / TICK_S), self.energy
        return self.shown

    def power_w(self):
        return self.now_w()

    def conditions(self):
        return Conditions(None, self.temp_c, 1000.0, 2000.0, 0)

    def close(self):
        pass

class Dying(Reader):
    lives_s = 2.0

def refused(device):
    raise ToolError("this reader is refused", "nothing was read", "ask for another")
"""


@pytest.fixture
def device_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Importable modules `kernels_for_energy` and `readers_for_energy`, also in child processes."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "kernels_for_energy.py").write_text(KERNELS)
    (folder / "readers_for_energy.py").write_text(READERS)
    (folder / "stamp").write_bytes(bytes(8))
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


@pytest.fixture
def energy_spec() -> Callable[..., dict[str, Any]]:
    """Return a maker of sweep specs with one scenario for each kernel named."""

    def make(*kernels: str) -> dict[str, Any]:
        return {
            "name": "energy",
            "device": "cpu",
            "experts": {"f32": {"d_model": 64, "d_ff": 64, "dtype": "float32"}},
            "measure": [
                {"expert": "f32", "tokens": [2], "kernels": {"expert": kernel}}
                for kernel in kernels
            ],
            "timing": {
                "target_ms": 20,
                "max_repetitions": 50,
                "remeasure": 0,
                "threads": 1,
                "max_robust_cv": 100,
                "max_pass_disagreement": 100,
            },
        }

    return make
