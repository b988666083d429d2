"""Price layers by the file of a cost table, whichever kind of model stands in it."""

from __future__ import annotations

import pyarrow as pa

from costprof.core.errors import TableError
from costprof.costmodel.grouped import serialise, serialise_transfer
from costprof.costmodel.grouped.model import GroupedModel
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.price import LayerPrices, price_layers
from costprof.costmodel.grouped.price_transfer import price_transferred
from costprof.costmodel.grouped.rows import measured_of_table
from costprof.costmodel.grouped.transfer import TransferModel
from costprof.costmodel.tablefile import TableFile


def price_by_table(
    points: LayerPoints, model: GroupedModel | TransferModel, rows: pa.Table
) -> LayerPrices:
    """Price `points` by the `model` of a table (`model_of`) and what was measured in its `rows`."""
    measured = measured_of_table(rows)
    if isinstance(model, TransferModel):
        return price_transferred(points, model, measured)
    return price_layers(points, model, measured)


def model_of(file: TableFile) -> GroupedModel | TransferModel:
    """Return the model of layers that `file` holds: fitted to its device, or carried to it.

    Raises:
        TableError: it holds none, or one that cannot be read.
    """
    if not file.model:
        raise TableError(
            "the table holds no model of whole layers",
            "nothing was priced",
            "fit a dataset of whole layers, such as costprof ingest --format aiconfigurator makes",
        )
    if serialise_transfer.is_transfer(file.model):
        return serialise_transfer.from_bytes(file.model)
    return serialise.from_bytes(file.model)
