"""Every held-out layer with what was measured, what was predicted and what the baselines say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from costprof.core.device import DeviceFingerprint
from costprof.core.errors import DatasetError
from costprof.costmodel.devices import DeviceSpec, spec_for
from costprof.costmodel.evaluation.baselines import boosted, linear_in_tokens, roofline_us
from costprof.costmodel.evaluation.columns import frame_of, layer_columns, quantile_columns
from costprof.costmodel.evaluation.origin import FrameOrigin
from costprof.costmodel.evaluation.splits import Fold, folds_of
from costprof.costmodel.grouped.dataset import measured_layers, named_layers
from costprof.costmodel.grouped.fit import LEAST_LAYERS, fit_grouped
from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.price import price_layers
from costprof.costmodel.grouped.work import layer_work
from costprof.profiler.dataset import read_measurements

Progress = Callable[[str, int, int], None]


def held_out_layers(
    folder: Path, split: str, *, seed: int = 0, progress: Progress | None = None
) -> pa.Table:
    """Return a row for each layer of the dataset in `folder` that `split` holds out.

    Columns: what the layer is; `latency_us` and `energy_mj` as measured; both predicted
    (`…_p05`, `…_p50`, `…_p95`), `power_w` likewise; of the baselines `linear_us`, `roofline_us`,
    `boosting_us`, `analytic_us`, `linear_mj` and `constant_tdp_mj`, NULL where one cannot tell.
    The schema's metadata say of the dataset what `FrameOrigin` holds.

    Raises:
        DatasetError: the dataset has too few layers of a named routing, or is of several devices.
        InputError: an unknown split.
    """
    rows = named_layers(read_measurements(folder))
    check_enough(rows, str(folder))
    devices = sorted(pc.unique(rows["device_name"]).to_pylist())
    if len(devices) > 1:
        raise DatasetError(
            f"{folder} was measured on {len(devices)} devices ({', '.join(devices)})",
            "nothing was evaluated",
            f"use --split device:{devices[0]},{devices[1]}, or a dataset of one device",
        )
    measured, spec = measured_layers(rows), layer_spec(rows)
    frame = held_out(measured, spec, split, seed=seed, progress=progress)
    return FrameOrigin.of_rows(folder.resolve().name, rows).attached(frame)


def check_enough(rows: pa.Table, whose: str) -> None:
    """Check that the `named_layers` `rows` are enough to fit.

    Raises:
        DatasetError: they are not.
    """
    if rows.num_rows < LEAST_LAYERS:
        raise DatasetError(
            f"{whose} has {rows.num_rows} layers of a named routing, fewer than {LEAST_LAYERS}",
            "nothing was evaluated",
            "costprof fit evaluates single experts; layers come in with costprof ingest",
        )


def layer_spec(rows: pa.Table) -> DeviceSpec:
    """Return the constants of the one device that the layers `rows` were measured on."""
    limits = [limit for limit in rows["power_limit_w"].to_pylist() if limit]
    return spec_for(
        DeviceFingerprint(
            kind="gpu",
            name=str(rows["device_name"][0].as_py()),
            power_limit_w=max(limits, default=0.0),
        )
    )


def held_out(
    measured: Measured,
    spec: DeviceSpec,
    split: str,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> pa.Table:
    """Return the frame of `measured` layers; see `held_out_layers`."""
    tell = progress or (lambda stage, done, total: None)
    _ = measured.points.load  # once, for all folds
    folds = folds_of(measured.points, split, seed=seed)
    frames = []
    for number, fold in enumerate(folds):
        tell(f"{split}: fit {number + 1} of {len(folds)}", number, len(folds))
        frames.append(_one_fold(measured, spec, fold, split))
    return pa.concat_tables(frames)


def _one_fold(measured: Measured, spec: DeviceSpec, fold: Fold, split: str) -> pa.Table:
    train, test = measured.take(fold.train), measured.take(fold.test)
    model = fit_grouped(train, spec).model
    prices = price_layers(test.points, model, train)
    found, points, work = prices.prediction, test.points, layer_work(test.points)
    roofline = roofline_us(points, work, spec)
    train_roofline = roofline_us(train.points, layer_work(train.points), spec)
    train_energy = train.power_w * train.latency_us * 1e-3
    columns: dict[str, Any] = {
        "split": [split] * len(points),
        **layer_columns(test, work, spec.power_limit_w),
        **quantile_columns("latency_us", found.latency_us),
        "linear_us": linear_in_tokens(train.points, train.latency_us, points),
        "roofline_us": roofline,
        "boosting_us": boosted(train, train_roofline, points, roofline),
        "analytic_us": model.base(points).analytic_us,
        **quantile_columns("energy_mj", found.energy_mj),
        "linear_mj": linear_in_tokens(train.points, train_energy, points),
        "power_w_p50": found.power_w,
        "tier": prices.tier,
    }
    return frame_of(columns)
