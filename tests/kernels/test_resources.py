"""What the compiler makes of the shipped kernels, for GPUs that need not be here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from costprof.core.errors import ToolError
from costprof.runtime.kernels.resources import (
    ARCHES,
    SHARED_BYTES_LIMIT,
    Resources,
    compile_linear,
    table,
)
from costprof.runtime.kernels.tiles import RULE_OF_THUMB

# The instruction of each generation for tiles of 64 rows and more, dense and fp8.
LARGE = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA"}
LARGE_FP8 = {90: "QGMMA", 100: "UTCQMMA"}


@pytest.fixture(scope="module")
def compilers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, Compiler]]:
    """A process for each generation, side by side: minutes each, of one core."""
    folder = tmp_path_factory.mktemp("resources")
    # In processes of their own: this one may interpret its kernels.
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    started = {}
    for arch in ARCHES:
        path = folder / f"{arch}.json"
        command = [sys.executable, "-m", "costprof.runtime.kernels.resources"]
        with path.open("w") as out:
            process = subprocess.Popen(
                [*command, "--json", "--arch", str(arch)], stdout=out, env=env
            )
        started[arch] = Compiler(process, path)
    yield started
    for each in started.values():
        each.process.kill()
        each.process.wait()


@dataclass(frozen=True)
class Compiler:
    """A process at work, and the file it writes."""

    process: subprocess.Popen[bytes]
    out: Path


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHES)
def test_shipped_kernels_spill_nothing_and_use_the_tensor_cores(
    arch: int, compilers: dict[int, Compiler], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compilers[arch].process.wait() == 0
    found = [Resources(**values) for values in json.loads(compilers[arch].out.read_text())]
    with capsys.disabled():
        print("\n" + table(found))
    products = [each for each in found if each.tensor_core]
    plain = [each.kernel for each in found if not each.tensor_core and "float32" not in each.kernel]
    # Schedule, permutation, scales and routing: nothing else does without tensor cores.
    small = {"list_tiles", "rank_slots", "copy_rows", "combine_rows", "row_scales_kernel"}
    small.add("decide_marginal")
    assert {name.split()[0] for name in plain} == small
    assert len([each for each in found if each.kernel.endswith(" row")]) == len(RULE_OF_THUMB)
    for each in found:
        # For sm_80 the compiler holds the routing decision to 128 registers a thread, and spills.
        decision = arch == 80 and each.kernel.startswith("decide_marginal")
        assert each.stack_bytes <= (32 if decision else 0), each
        assert each.local_accesses <= (9 if decision else 0), each
        assert each.shared_bytes <= SHARED_BYTES_LIMIT[arch], each
        assert each.blocks_per_sm >= 1, each
        assert 0 < each.occupancy <= 1, each
    large = [each for each in products if " 64x" in each.kernel or " 128x" in each.kernel]
    assert large
    for each in large:
        wanted = LARGE_FP8[arch] if " fp8 " in each.kernel else LARGE[arch]
        assert set(each.tensor_core) == {wanted}, each


def test_an_interpreting_process_cannot_compile() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("this process compiles its kernels")
    with pytest.raises(ToolError, match="TRITON_INTERPRET is set in this process; kernels cannot"):
        compile_linear(90, RULE_OF_THUMB[0])
