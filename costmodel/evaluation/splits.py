"""Which layers are held out: by token count, at random, by shape, or all but a few of a class."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from costprof.core.errors import InputError
from costprof.costmodel.grouped.points import LayerPoints

Mask = npt.NDArray[np.bool_]

_KINDS = "token, shape, sparse:FRACTION, fewshot:POINTS or device:FROM,TO"


@dataclass(frozen=True, slots=True)
class Fold:
    """What one fit sees, and what it is then asked: [n] each. Layers in neither are left aside."""

    train: Mask
    test: Mask


def folds_of(points: LayerPoints, split: str, *, folds: int = 5, seed: int = 0) -> list[Fold]:
    """Return the folds of `split` that hold something out and leave something to fit.

    - `token`: every token count but the smallest and largest, a few far apart at a time, so that
      both neighbours of each stay (for what only looks at neighbours: leave one out).
    - `shape`: all layers of a model shape (hidden, inner, top-k, experts), a fold of shapes at a
      time.
    - `sparse:F`: all but a share F of the layers, drawn at random.
    - `fewshot:K`: as `shape`, but K layers of each curve of the held-out shapes are given, drawn at
      random.

    Raises:
        InputError: an unknown split, or one these layers cannot be split by.
    """
    every = list(_every_fold(points, split, folds, seed))
    testing = [fold for fold in every if fold.test.any()]
    if not testing:
        raise _refused(split, f"of {len(points)} layers it holds none out")
    found = [fold for fold in testing if fold.train.any()]
    if not found:
        raise _refused(split, f"of {len(points)} layers it leaves none to fit")
    return found


def _every_fold(points: LayerPoints, split: str, folds: int, seed: int) -> Iterator[Fold]:
    kind, _, argument = split.partition(":")
    rng = np.random.default_rng(seed)
    if kind == "token" and not argument:
        yield from _by_token(points, folds)
    elif kind == "shape" and not argument:
        yield from _by_shape(points, folds, rng, 0)
    elif kind == "sparse":
        share = _number(split, argument)
        if not 0.0 < share < 1.0:
            raise _refused(split, "the share is not between 0 and 1")
        train = rng.random(len(points)) < share
        yield Fold(train, ~train)
    elif kind == "fewshot":
        few = _number(split, argument)
        if few < 1 or few != int(few):
            raise _refused(split, "the number of points is no positive whole number")
        yield from _by_shape(points, folds, rng, int(few))
    else:
        raise _refused(split, "it is unknown")


def _by_token(points: LayerPoints, folds: int) -> Iterator[Fold]:
    counts = np.unique(points.tokens)[1:-1]
    if not len(counts):
        raise _refused("token", "there are fewer than three token counts")
    for first in range(min(folds, len(counts))):
        test = np.isin(points.tokens, counts[first::folds])
        yield Fold(~test, test)


def _by_shape(
    points: LayerPoints, folds: int, rng: np.random.Generator, few: int
) -> Iterator[Fold]:
    shapes = np.unique(points.shape)
    if len(shapes) < 2:
        raise _refused("shape", "there is only one shape")
    shuffled = rng.permutation(shapes)
    for first in range(min(folds, len(shapes))):
        test = np.isin(points.shape, shuffled[first::folds])
        if few:
            test &= ~_few_of_each(points.curve, test, few, rng)
        yield Fold(~test, test)


def _few_of_each(
    curve: npt.NDArray[np.str_], among: Mask, few: int, rng: np.random.Generator
) -> Mask:
    chosen = np.zeros(len(curve), dtype=bool)
    for name in np.unique(curve[among]):
        at = np.flatnonzero(curve == name)
        chosen[rng.choice(at, min(few, len(at)), replace=False)] = True
    return chosen


def _number(split: str, argument: str) -> float:
    try:
        value = float(argument)
    except ValueError:
        raise _refused(split, f"{argument!r} is no number") from None
    if not math.isfinite(value):
        raise _refused(split, f"{argument!r} is no finite number")
    return value


def _refused(split: str, fact: str) -> InputError:
    return InputError(
        f"split {split!r} cannot be made: {fact}", "nothing was evaluated", f"use {_KINDS}"
    )
