"""Compile the shipped kernels for GPUs that are not here, and read what they would take.

    python -m costprof.runtime.kernels.resources [--json] [--arch 90]

Registers and spills come from `cuobjdump -res-usage`, tensor-core instructions and local-memory
traffic from the machine code itself; both tools are packaged with Triton. Occupancy is what
registers, shared memory and warps leave room for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from costprof.core.errors import ToolError
from costprof.routing.kernels.marginal_gpu import block_for
from costprof.routing.kernels.marginal_triton import decide_marginal
from costprof.routing.pruning import ONE
from costprof.runtime.kernels import triton_linear, triton_permute, triton_schedule
from costprof.runtime.kernels.tiles import Tile, rule_of_thumb

ARCHES = (80, 90, 100)
SHARED_BYTES_LIMIT = {80: 166_912, 90: 232_448, 100: 232_448}
"""Dynamic shared memory one thread block may have, by architecture (CUDA programming guide)."""

_REGISTERS_PER_SM = 65_536
_WARPS_PER_SM = 64
_SHARED_BYTES_PER_SM = {80: 167_936, 90: 233_472, 100: 233_472}
_TENSOR_CORE = re.compile(r"\b(HGMMA|QGMMA|IGMMA|HMMA|IMMA|QMMA|UTCHMMA|UTCQMMA|UTCIMMA)\b")
_LOCAL = re.compile(r"\b(STL|LDL)\b")
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}
_DECISION = {
    **dict.fromkeys(("scores", "ranking", "plain_weights", "weights"), "*fp32"),
    **dict.fromkeys(("plain", "class_index", "indices", "counts_out", "share"), "*i64"),
    **dict.fromkeys(("real", "changeable", "used"), "*i8"),
    **dict.fromkeys(("values", "slope", "base", "lost", "price_of", "saving_of"), "*fp64"),
    **dict.fromkeys(("offered_of", "round_of"), "*i32"),
    **dict.fromkeys(("rows", "experts", "classes", "max_tokens"), "i32"),
    "slack": "i64",
    **dict.fromkeys(("first_weight", "second_weight", "lam", "budget"), "fp32"),
}
_STORED = {"none": None, "int8": "*i8", "int4": "*u8", "fp8": "*fp8e4nv"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one compiled kernel takes.

    Attributes:
        registers: Of a thread.
        stack_bytes: Local memory of a thread; more than 0 means spills.
        local_accesses: Instructions that load or store local memory.
        shared_bytes: Of a thread block, static and dynamic.
        tensor_core: Tensor-core instructions by name.
        blocks_per_sm, occupancy: Blocks a multiprocessor holds, and their share of its warps.
    """

    kernel: str
    arch: int
    registers: int
    stack_bytes: int
    local_accesses: int
    shared_bytes: int
    tensor_core: dict[str, int]
    blocks_per_sm: int
    occupancy: float


def compile_linear(
    arch: int,
    tile: Tile,
    *,
    activation: str = "silu_mul",
    quantisation: str = "none",
    dtype: torch.dtype = torch.bfloat16,
    single: bool = False,
    even_k: bool = True,
    one_row: bool = False,
) -> Resources:
    """Compile the grouped product for compute capability `arch` / 10.

    Triton compiles a kernel anew for an argument that is 1; with `one_row` the rows are.
    """
    pointer = _POINTERS[dtype]
    scaled = quantisation != "none"
    signature = {
        "x": pointer,
        "x_scale": "*fp32" if quantisation == "fp8" else pointer,
        "w": _STORED[quantisation] or pointer,
        "w_scale": "*fp32" if scaled else pointer,
        "out": pointer,
        "tiles": pointer if single else "*i32",
        "n_tiles": pointer if single else "*i32",
        "rows": "i32",
        "n_out": "i32",
        "n_in": "i32",
    }
    depth = tile.BLOCK_K if even_k else tile.BLOCK_K + 1
    constants = triton_linear.kernel_constants(tile, activation, quantisation, dtype, depth, single)
    name = f"{activation} {quantisation} {str(dtype).removeprefix('torch.')} {_tile_name(tile)}"
    name += " single" if single else ""
    name += "" if even_k else " uneven"
    if one_row:
        constants["rows"] = 1
        name += " row"
    # The number of rows is the only size that is not a multiple of 16.
    return compile_kernel(
        triton_linear.grouped_linear_kernel,
        name,
        arch,
        signature,
        constants,
        aligned=[key for key in signature if key != "rows"],
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )


def compile_kernel(
    kernel: Any,
    name: str,
    arch: int,
    signature: dict[str, str],
    constants: dict[str, Any],
    *,
    aligned: list[str],
    num_warps: int = 4,
    num_stages: int = 3,
) -> Resources:
    """Compile a Triton `kernel` for compute capability `arch` / 10 and read its resources.

    Args:
        signature: Triton type of each run-time argument.
        constants: Compile-time arguments.
        aligned: Arguments that are multiples of 16, as pointers and strides are in practice.

    Raises:
        ToolError: kernels are interpreted in this process, or the packaged tools fail.
    """
    if not isinstance(kernel, triton.runtime.JITFunction):
        raise ToolError(
            "TRITON_INTERPRET is set in this process",
            "kernels cannot be compiled in it",
            "unset it before Python starts",
        )
    positions = {argument: index for index, argument in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature={**signature, **dict.fromkeys(constants, "constexpr")},
        constexprs={(positions[key],): value for key, value in constants.items()},
        attrs={(positions[key],): [["tt.divisibility", 16]] for key in aligned},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": True},
    )
    usage, code = _inspect(compiled.asm["cubin"])
    registers, stack, static, _ = (int(text) for text in usage.groups())
    shared = max(static, int(compiled.metadata.shared))
    blocks = _blocks_per_sm(arch, registers, shared, num_warps)
    tensor_core: dict[str, int] = {}
    for instruction in _TENSOR_CORE.findall(code):
        tensor_core[instruction] = tensor_core.get(instruction, 0) + 1
    return Resources(
        kernel=name,
        arch=arch,
        registers=registers,
        stack_bytes=stack,
        local_accesses=len(_LOCAL.findall(code)),
        shared_bytes=shared,
        tensor_core=tensor_core,
        blocks_per_sm=blocks,
        occupancy=blocks * num_warps / _WARPS_PER_SM,
    )


def shipped_kernels(arch: int) -> list[Resources]:
    """Compile everything a sweep can run without naming a tile, for `arch`."""
    found = []
    quantisations = ("none", "int8", "int4", *(("fp8",) if arch >= triton_linear.FP8_FROM else ()))
    for quantisation in quantisations:
        for tile in rule_of_thumb(arch, torch.bfloat16):
            for activation in ("silu_mul", "none"):
                found.append(
                    compile_linear(arch, tile, activation=activation, quantisation=quantisation)
                )
    for tile in rule_of_thumb(arch, torch.float32):
        for activation in ("silu_mul", "none"):
            found.append(compile_linear(arch, tile, activation=activation, dtype=torch.float32))
    for tile in rule_of_thumb(arch, torch.bfloat16):
        found.append(compile_linear(arch, tile, even_k=False))
        found.append(compile_linear(arch, tile, single=True))
        found.append(compile_linear(arch, tile, single=True, one_row=True))
        found.append(compile_linear(arch, tile, activation="relu", dtype=torch.float16))
        found.append(compile_linear(arch, dataclasses.replace(tile, persistent=1)))
    return [*found, *_small_kernels(arch)]


def _small_kernels(arch: int) -> list[Resources]:
    def small(
        kernel: Any, kinds: dict[str, str], *, num_warps: int = 4, **constants: Any
    ) -> Resources:
        pointers = [name for name, kind in kinds.items() if kind.startswith("*")]
        name = " ".join([kernel.fn.__name__, *(f"{key}={constants[key]}" for key in constants)])
        return compile_kernel(
            kernel, name, arch, kinds, constants, aligned=pointers, num_warps=num_warps
        )

    ints = {"counts": "*i32", "tiles": "*i32", "n_tiles": "*i32", "experts": "i32"}
    ranks = {"ids": "*i32", "counts": "*i32", "position": "*i32", "slots": "i32"}
    rows = {"x": "*bf16", "rows": "*bf16", "position": "*i32", "top_k": "i32", "width": "i32"}
    sums = {"rows": "*bf16", "out": "*bf16", "position": "*i32", "weights": "*fp32", "width": "i32"}
    return [
        *(
            small(
                triton_schedule.list_tiles,
                ints,
                num_warps=triton_schedule.schedule_warps(experts),
                BLOCK_M=16,
                EXPERTS=experts,
                BLOCK_T=triton_schedule.BLOCK_T,
            )
            for experts in (8, 256, 512)
        ),
        small(
            triton_schedule.list_tiles,
            ints,
            BLOCK_M=16,
            EXPERTS=1,
            BLOCK_T=triton_schedule.BLOCK_T,
            experts=1,
        ),
        *(
            small(
                decide_marginal,
                _DECISION,
                num_warps=block_for(experts).warps,
                TOP_K=8,
                BLOCK_T=block_for(experts).rows,
                BLOCK_E=experts,
                ONE=float(ONE),
                DESCRIBED=described,
                BUDGETED=described,
            )
            for experts in (64, 128, 256)
            for described in (False, True)
        ),
        small(triton_permute.rank_slots, ranks, BLOCK=1024),
        small(triton_permute.rank_slots, ranks, BLOCK=1, slots=1),
        small(triton_permute.copy_rows, rows, BLOCK=1024),
        small(triton_permute.copy_rows, rows, BLOCK=1024, top_k=1),
        small(triton_permute.combine_rows, sums, TOP_K=8, BLOCK=1024),
        small(triton_permute.combine_rows, sums, TOP_K=1, BLOCK=1024),
        small(
            triton_linear.row_scales_kernel,
            {"x": "*bf16", "scale": "*fp32", "width": "i32"},
            BLOCK=2048,
        ),
    ]


def _tile_name(tile: Tile) -> str:
    sizes = f"{tile.BLOCK_M}x{tile.BLOCK_N}x{tile.BLOCK_K} w{tile.num_warps} s{tile.num_stages}"
    return sizes + (" persistent" if tile.persistent else "")


def _blocks_per_sm(arch: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    # Registers are given out by warp, in steps of 256; a block keeps 1 KiB of shared memory.
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = _REGISTERS_PER_SM // (per_warp * num_warps)
    by_shared = _SHARED_BYTES_PER_SM[arch] // (shared_bytes + 1024)
    return min(by_registers, by_shared, _WARPS_PER_SM // num_warps)


def _inspect(cubin: bytes) -> tuple[re.Match[str], str]:
    """Return the resource line and the machine code of `cubin`."""
    import triton.backends.nvidia

    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        printed = [
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=False)
            for option in ("-res-usage", "-sass")
        ]
    usage = _USAGE.search(printed[0].stdout)
    if usage is None or printed[1].returncode:
        raise ToolError(
            f"cuobjdump does not read the cubin ({printed[0].stderr.strip()[:200]})",
            "the kernel's resources are not known",
            "reinstall triton, which brings cuobjdump",
        )
    return usage, printed[1].stdout


def table(found: list[Resources]) -> str:
    """Return `found` as a table to read."""
    head = (
        f"{'kernel':<52} {'sm':>4} {'regs':>5} {'stack':>6} {'local':>6} {'shared':>8} "
        f"{'blocks':>6} {'occ':>5}  tensor core"
    )
    lines = [head]
    for each in found:
        cores = " ".join(f"{name}:{count}" for name, count in each.tensor_core.items()) or "-"
        lines.append(
            f"{each.kernel:<52} {each.arch:>4} {each.registers:>5} {each.stack_bytes:>6} "
            f"{each.local_accesses:>6} {each.shared_bytes:>8} {each.blocks_per_sm:>6} "
            f"{each.occupancy:>5.0%}  {cores}"
        )
    return "\n".join(lines)


def main() -> int:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description="Resources of the shipped kernels.")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--arch", type=int, action="append", choices=ARCHES)
    options = parser.parse_args()
    found = [each for arch in options.arch or ARCHES for each in shipped_kernels(arch)]
    if options.json:
        json.dump([dataclasses.asdict(each) for each in found], sys.stdout)
    else:
        sys.stdout.write(table(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
