"""`costprof table export`: the tile configs of a table, for servers that read their own files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from costprof.cli.console import print_json
from costprof.core.errors import InputError


def export(
    path: Annotated[Path, typer.Argument(help="The table, a Parquet file.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    format: Annotated[str, typer.Option("--format", help="vllm or sglang.")] = "vllm",
    moe: Annotated[str | None, typer.Option(help="The MoE, where there are several.")] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Kind in the file name, e.g. fp8_w8a8, or none; by default the table's."),
    ] = None,
    block_shape: Annotated[
        str | None, typer.Option(help="Blocks of quantised weights, for example 128,128.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Write the best tile configs as the file that vLLM or SGLang loads for fused MoE."""
    if format not in ("vllm", "sglang"):
        raise InputError(
            f"--format {format!r} is unknown", "no file was written", "use vllm or sglang"
        )
    from costprof.core.files import writable_folder, write_json
    from costprof.costmodel.fused_moe_configs import fused_moe_file
    from costprof.costmodel.tablefile import read_table

    file = read_table(path)
    made = fused_moe_file(
        file.rows,
        file.manifest,
        format="vllm" if format == "vllm" else "sglang",
        moe=moe,
        dtype=dtype,
        block_shape=_blocks(block_shape),
    )
    target = out / made.path
    if target.exists() and not force:
        raise InputError(f"{target} exists", "it was not overwritten", "use --force")
    writable_folder(target.parent)
    write_json(target, made.configs)
    if as_json:
        print_json({"file": str(target), "source": made.source, "configs": made.configs})
        return
    variable = "VLLM_TUNED_CONFIG_FOLDER" if format == "vllm" else "SGLANG_MOE_CONFIG_DIR"
    print(f"{target}: {len(made.configs)} token counts, from {made.source}")
    print(f"start the server with {variable}={out}")


def _blocks(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise InputError(
            f"--block-shape {text!r} is not two whole numbers",
            "no file was written",
            "give rows and columns of a block, for example 128,128",
        )
    return int(parts[0]), int(parts[1])
