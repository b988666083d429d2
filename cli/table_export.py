"""`costprof table export`: for servers their files of tile configs, for other tools all rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from costprof.cli.console import print_json
from costprof.core.errors import InputError

if TYPE_CHECKING:
    from costprof.costmodel.tablefile import TableFile


def export(
    path: Annotated[Path, typer.Argument(help="The table, a Parquet file.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")],
    format: Annotated[str, typer.Option("--format", help="vllm, sglang, csv or json.")] = "vllm",
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
    """Write the best tile configs as vLLM or SGLang loads them, or all rows as CSV or JSON."""
    from costprof.costmodel.tablefile import read_table

    if format in ("csv", "json"):
        for name, value in (("moe", moe), ("dtype", dtype), ("block-shape", block_shape)):
            if value is not None:
                raise InputError(
                    f"--{name} with --format {format}",
                    "no file was written",
                    f"all rows are written: leave --{name} to vllm and sglang",
                )
        _export_rows(read_table(path), out / f"{path.stem}.{format}", format, force, as_json)
    elif format in ("vllm", "sglang"):
        _export_configs(
            read_table(path),
            out,
            "vllm" if format == "vllm" else "sglang",
            moe,
            dtype,
            block_shape,
            force=force,
            as_json=as_json,
        )
    else:
        raise InputError(
            f"--format {format!r} is unknown",
            "no file was written",
            "use vllm, sglang, csv or json",
        )


def _export_rows(file: TableFile, target: Path, format: str, force: bool, as_json: bool) -> None:
    from costprof.core.files import write_text
    from costprof.costmodel.plain_export import rows_csv, table_json

    _prepare(target, force)
    write_text(target, rows_csv(file.rows) if format == "csv" else table_json(file))
    left_out = ["manifest"] if format == "csv" else []
    left_out += ["model"] if file.model else []
    if as_json:
        print_json({"file": str(target), "rows": file.rows.num_rows, "left_out": left_out})
        return
    without = f", without the {' and the '.join(left_out)}" if left_out else ""
    print(f"{target}: {file.rows.num_rows} rows{without}")


def _export_configs(
    file: TableFile,
    out: Path,
    format: Literal["vllm", "sglang"],
    moe: str | None,
    dtype: str | None,
    block_shape: str | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    from costprof.core.files import write_json
    from costprof.costmodel.fused_moe_configs import fused_moe_file

    made = fused_moe_file(
        file.rows,
        file.manifest,
        format=format,
        moe=moe,
        dtype=dtype,
        block_shape=_blocks(block_shape),
    )
    target = out / made.path
    _prepare(target, force)
    write_json(target, made.configs)
    if as_json:
        print_json({"file": str(target), "source": made.source, "configs": made.configs})
        return
    variable = "VLLM_TUNED_CONFIG_FOLDER" if format == "vllm" else "SGLANG_MOE_CONFIG_DIR"
    print(f"{target}: {len(made.configs)} token counts, from {made.source}")
    print(f"start the server with {variable}={out}")


def _prepare(target: Path, force: bool) -> None:
    """Make the folder of `target`; refuse to overwrite a file without `force`."""
    from costprof.core.files import writable_folder

    if target.exists() and not force:
        raise InputError(f"{target} exists", "it was not overwritten", "use --force")
    writable_folder(target.parent)


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
