"""`costprof table diff`: what became slower or hungrier; exit codes for CI and `git bisect`."""

from __future__ import annotations

import contextlib
import math
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from costprof.cli.console import error_line, print_json
from costprof.core.errors import CostprofError, DeviceMismatchError

if TYPE_CHECKING:
    from costprof.costmodel.table_diff import Change, CurveDiff, Quantity, TableDiff, Verdict
    from costprof.costmodel.tablefile import TableFile

WORSE = 1
CANNOT_TELL = 125
"""What `git bisect run` takes for "skip this commit"."""
SHOWN = 20

_TITLES: tuple[tuple[str, Quantity, Verdict], ...] = (
    ("slower", "latency_us", "worse"),
    ("hungrier", "energy_mj", "worse"),
    ("faster", "latency_us", "better"),
    ("less hungry", "energy_mj", "better"),
)


def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="The table of before.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The table of after.")],
    threshold: Annotated[
        float, typer.Option(help="Relative change that matters: 0.05 is 5 percent.")
    ] = 0.05,
    allow_device_mismatch: Annotated[
        bool, typer.Option("--allow-device-mismatch", help="Compare tables of two device models.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Compare two tables; exit code 1 if B is worse, 0 if not, 125 if that cannot be told."""
    with _skipping_what_cannot_be_told():
        worse = _diff(before, after, threshold, allow_device_mismatch, as_json)
    if worse:
        sys.exit(WORSE)


@contextlib.contextmanager
def _skipping_what_cannot_be_told() -> Iterator[None]:
    """End every failure with exit code 125: bisecting takes all others below 128 for "bad"."""
    try:
        yield
    except CostprofError as error:
        error_line(str(error))
        sys.exit(CANNOT_TELL)
    except Exception:
        traceback.print_exc()
        sys.exit(CANNOT_TELL)


def _diff(before: Path, after: Path, threshold: float, allow: bool, as_json: bool) -> bool:
    from costprof.costmodel.compatibility import drifts
    from costprof.costmodel.table_diff import diff_tables
    from costprof.costmodel.tablefile import read_table

    old, new = read_table(before), read_table(after)
    _check_devices(old, new, allow)
    found = diff_tables(old.rows, new.rows, threshold)
    differs = drifts(old.manifest, new.manifest.device, new.manifest.software)
    if as_json:
        print_json(_as_json(found, old, new, differs))
    else:
        _print(found, differs)
    return found.is_worse


def _check_devices(old: TableFile, new: TableFile, allow: bool) -> None:
    one, other = old.manifest.device, new.manifest.device
    if (one.kind, one.name) != (other.kind, other.name) and not allow:
        raise DeviceMismatchError(
            f"one table was measured on {one.name}, the other on {other.name}",
            "what differs may be the device",
            "measure both on one, or give --allow-device-mismatch",
        )


def _print(found: TableDiff, differs: list[str]) -> None:
    for title, quantity, verdict in _TITLES:
        curves = [curve for curve in found.curves if curve.found(quantity, verdict)]
        if not curves:
            continue
        curves.sort(key=lambda curve: _largest(curve, quantity, verdict), reverse=True)
        print(f"{title}: {_plural(len(curves), 'curve')}")
        for curve in curves[:SHOWN]:
            _print_curve(curve, quantity, verdict)
        if len(curves) > SHOWN:
            print(f"  … and {len(curves) - SHOWN} more: --json lists them")
    for name, only in (("A", found.only_before), ("B", found.only_after)):
        if only:
            rows = sum(count for _, count in only)
            print(f"only in {name}: {_plural(len(only), 'curve')} ({_plural(rows, 'row')})")
            for fields, count in only[:SHOWN]:
                print(f"  {_label(fields)}: {_plural(count, 'row')}")
            if len(only) > SHOWN:
                print(f"  … and {len(only) - SHOWN} more: --json lists them")
    for difference in differs:
        print(f"measured differently: {difference}")
    missing = sum(
        len(each.tokens_only_before) + len(each.tokens_only_after) for each in found.curves
    )
    rows = sum(len(curve.by_tokens.get("latency_us", {})) for curve in found.curves)
    print(
        f"compared {_plural(len(found.curves), 'curve')}, {_plural(rows, 'row')} "
        f"({missing} more in one table alone), beyond {100 * found.threshold:g} % and chance: "
        + ("B is worse" if found.is_worse else "B is not worse")
    )


def _print_curve(curve: CurveDiff, quantity: Quantity, verdict: Verdict) -> None:
    rows = curve.by_tokens[quantity]
    single = {n: change for n, change in rows.items() if change.verdict == verdict}
    whole = curve.whole[quantity]
    unit = "us" if quantity == "latency_us" else "mJ"
    print(f"  x{whole.ratio:<7.3f}{_label(curve.fields)}")
    if curve.fields["class_id"] != curve.fields_after["class_id"]:
        print(f"           another version of the kernel: {curve.fields_after['class_id'][:6]}")
    if single:
        worst = max(single, key=lambda n: abs(math.log(single[n].ratio)))
        change = single[worst]
        print(
            f"           at {len(single)} of {_plural(len(rows), 'token count')} "
            f"({_counts(list(single))}), most at {worst}: "
            f"{change.before:.4g} to {change.after:.4g} {unit}, x{change.ratio:.3f}"
        )
    else:
        print(
            f"           over {_plural(len(rows), 'token count')} together, at none of them alone"
        )


def _largest(curve: CurveDiff, quantity: Quantity, verdict: Verdict) -> float:
    changes = [curve.whole[quantity], *curve.by_tokens[quantity].values()]
    return max(abs(math.log(change.ratio)) for change in changes if change.verdict == verdict)


def _counts(tokens: list[int]) -> str:
    return ", ".join(map(str, tokens)) if len(tokens) <= 4 else f"{tokens[0]} … {tokens[-1]}"


def _label(fields: dict[str, Any]) -> str:
    """Return what a reader knows a curve by."""
    if fields["block"] == "attention":
        shape = f"{fields['d_model']}, {fields['n_heads']} heads of {fields['head_dim']}"
    else:
        shape = f"{fields['d_model']}x{fields['d_ff']} {fields['activation']}"
    kind = fields["dtype"] if fields["quantisation"] == "none" else fields["quantisation"]
    parts = [f"{fields['op']} {shape} {kind}, {fields['cache_state']}, {fields['kernel']}"]
    if fields["experts"] is not None:
        parts.append(
            f"{fields['experts']} experts, top {fields['top_k']}, ep {fields['ep_size']}, "
            f"tp {fields['tp_size']}, {fields['distribution']}"
        )
    if fields["config"] != "{}":
        parts.append(str(fields["config"]))
    return f"{fields['class_id'][:6]} " + ", ".join(parts)


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _as_json(
    found: TableDiff, old: TableFile, new: TableFile, differs: list[str]
) -> dict[str, Any]:
    from costprof.costmodel.table_diff import FALSE_DISCOVERIES

    return {
        "a": {"content_hash": old.manifest.content_hash, "device": old.manifest.device.name},
        "b": {"content_hash": new.manifest.content_hash, "device": new.manifest.device.name},
        "threshold": found.threshold,
        "false_discovery_rate": FALSE_DISCOVERIES,
        "worse": found.is_worse,
        "drifts": differs,
        "curves": [_curve_json(curve) for curve in found.curves],
        "only_in_a": [{**fields, "rows": count} for fields, count in found.only_before],
        "only_in_b": [{**fields, "rows": count} for fields, count in found.only_after],
    }


def _curve_json(curve: CurveDiff) -> dict[str, Any]:
    return {
        **curve.fields,
        "class_id_b": curve.fields_after["class_id"],
        "tokens_only_in_a": list(curve.tokens_only_before),
        "tokens_only_in_b": list(curve.tokens_only_after),
        **{name: _change_json(change) for name, change in curve.whole.items()},
        **{
            f"{name}_by_tokens": [
                {"tokens": tokens, **_change_json(change)} for tokens, change in rows.items()
            ]
            for name, rows in curve.by_tokens.items()
        },
    }


def _change_json(change: Change) -> dict[str, Any]:
    return {
        "a": change.before,
        "b": change.after,
        "ratio": change.ratio,
        "p_value": change.p_value,
        "verdict": change.verdict,
    }
