"""Price layers by the file of a cost table, whichever kind of model stands in it."""

from __future__ import annotations

from costprof.core.errors import TableError
from costprof.costmodel.grouped import serialise, serialise_transfer
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.price import LayerPrices, price_layers
from costprof.costmodel.grouped.price_transfer import price_transferred
from costprof.costmodel.grouped.rows import measured_of_table
from costprof.costmodel.tablefile import TableFile


def price_by_table(points: LayerPoints, file: TableFile) -> LayerPrices:
    """Price `points` by the model of `file` and by what was measured in its rows.

    Raises:
        TableError: it holds no model, or one that cannot be read.
    """
    data, measured = model_of(file), measured_of_table(file.rows)
    if serialise_transfer.is_transfer(data):
        return price_transferred(points, serialise_transfer.from_bytes(data), measured)
    return price_layers(points, serialise.from_bytes(data), measured)


def model_of(file: TableFile) -> bytes:
    """Return the bytes of the model of layers that `file` holds.

    Raises:
        TableError: it holds none.
    """
    if not file.model:
        raise TableError(
            "the table holds no model of whole layers",
            "nothing was priced",
            "fit a dataset of whole layers, such as costprof ingest --format aiconfigurator makes",
        )
    return file.model
