"""Price layers by a transferred model, and by what little was measured on its target."""

from __future__ import annotations

import numpy as np

from costprof.costmodel.grouped.model import Measured
from costprof.costmodel.grouped.points import LayerPoints
from costprof.costmodel.grouped.price import (
    LayerPrices,
    as_read,
    layer_keys,
    merged,
    positions_among,
)
from costprof.costmodel.grouped.transfer import TransferModel


def price_transferred(
    points: LayerPoints, model: TransferModel, measured: Measured | None = None
) -> LayerPrices:
    """Price `points` on the target of `model`, whose layers were `measured` as far as given.

    A layer measured there costs what was read; all others are of tier `transferred`.
    """
    tier = np.full(len(points), "transferred", dtype="<U16")
    if measured is None or not len(measured.points):
        return LayerPrices(model.predict(points), tier)
    exact = positions_among(layer_keys(points), layer_keys(measured.points))
    known = exact >= 0
    tier[known] = "measured"
    others = model.predict(points.take(~known))
    readings = as_read(measured.take(exact[known]), model.source.model)
    return LayerPrices(merged(known, readings, others), tier)
