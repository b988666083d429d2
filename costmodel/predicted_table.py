"""A table of predictions: MoEs that nobody measured, priced by the model a fitted table holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from costprof.core.errors import InputError
from costprof.costmodel.devices import spec_for
from costprof.costmodel.fitted import FittedTable, Progress
from costprof.costmodel.grouped.moe_prices import MoePrices, price_moe
from costprof.costmodel.grouped.price_table import model_of
from costprof.costmodel.grouped.rows import measured_of_table
from costprof.costmodel.grouped.transfer import TransferModel
from costprof.costmodel.rows import rows_table
from costprof.costmodel.tablefile import TableFile
from costprof.profiler.stored_moe import StoredMoe


def predicted_table(
    file: TableFile,
    moes: Sequence[StoredMoe],
    tell: Progress,
    *,
    kernel: str | None = None,
    notes: Sequence[str] = (),
) -> FittedTable:
    """Price `moes` by the model of `file`; no row of it is taken over, its model is.

    Raises:
        TableError: `file` holds no model.
        InputError: two MoEs share a name or an expert class, or one cannot be priced.
    """
    model, measured = model_of(file), measured_of_table(file.rows)
    carried = isinstance(model, TransferModel)
    spec = model.target if isinstance(model, TransferModel) else spec_for(file.manifest.device)
    priced: list[MoePrices] = []
    for number, moe in enumerate(moes):
        tell("pricing", number, len(moes))
        priced.append(price_moe(moe, model, measured, spec, kernel=kernel))
    _check_distinct(priced)
    manifest = dataclasses.replace(
        file.manifest,
        moes=tuple(each.spec for each in priced),
        compositions={each.rows[0].class_id: each.composition for each in priced},
        validation={
            **file.manifest.validation,
            "additive": {each.spec.name: dict(each.figures) for each in priced},
        },
        parameters={},
        notes=(
            "all prices are predictions of a model fitted to the sources; none was measured",
            *(file.manifest.notes if carried else ()),
            *notes,
        ),
        tiled_layers=(),
    )
    return FittedTable(
        rows_table(row for each in priced for row in each.rows), manifest, file.model
    )


def _check_distinct(priced: list[MoePrices]) -> None:
    for what, keys in (
        ("name", [each.spec.name for each in priced]),
        ("expert class", [each.rows[0].class_id for each in priced]),
    ):
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise InputError(
                f"two of the MoEs have the {what} {twice}",
                "no table was made, as the two would share their prices",
                "make a table for each",
            )
