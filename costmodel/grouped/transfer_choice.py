"""Choose which layers to measure on a target, so that all prices carried there gain most.

Greedily, whichever lowers the summed variance of the correction over all layers most (active
learning by Cohn, 1996, on a Gaussian process). What a measurement will say does not matter for its
worth, only where it stands, so the whole list can be made before the target is ever touched.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from costprof.costmodel.grouped.carry import Carried
from costprof.costmodel.grouped.transfer import TransferScales, between

Array = npt.NDArray[np.float64]

_POOL = 2000


def choose_targets(
    carried: Carried, number: int, scales: TransferScales, *, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Return the positions of `number` of the `carried` layers, the most telling first.

    Of many layers a sample is weighed, drawn by `seed`; `number` beyond it is cut. An order of
    measuring: any beginning of the list is a good choice of that length.
    """
    size = len(carried)
    at = np.sort(np.random.default_rng(seed).permutation(size)[: max(_POOL, 2 * number)])
    pool = carried.take(at)
    left = between(pool, pool, scales)
    noise = np.asarray(scales.noise_variance(pool.spread) + pool.variance)
    free = np.ones(len(at), dtype=bool)
    chosen = []
    for _ in range(min(number, len(at))):
        gain = (left**2).sum(axis=0) / (np.diag(left) + noise)
        best = int(np.where(free, gain, -1.0).argmax())
        free[best] = False
        chosen.append(int(at[best]))
        left -= np.outer(left[:, best], left[best]) / (left[best, best] + noise[best])
    return np.array(chosen, dtype=np.int64)
