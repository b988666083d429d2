"""Token counts per expert for a layer scenario, made from a named distribution."""

from __future__ import annotations

import re

from costprof.core.errors import InputError


def layer_counts(experts: int, top_k: int, tokens: int, distribution: str) -> tuple[int, ...]:
    """Spread `tokens * top_k` assignments over `experts`; no expert gets more than `tokens`.

    `distribution` is `balanced`, `active-N` (balanced over N experts, the rest idle) or `zipf-S`
    (expert of rank r gets a share proportional to r**-S). The result is deterministic: shares are
    rounded by largest remainder, and what exceeds `tokens` on one expert moves to the next ones.

    >>> layer_counts(4, 2, 8, "balanced")
    (4, 4, 4, 4)
    >>> layer_counts(4, 1, 8, "active-2")
    (4, 4, 0, 0)
    >>> layer_counts(4, 2, 8, "zipf-1.2")
    (8, 4, 2, 2)

    Raises:
        InputError: an unknown distribution, or more assignments than the experts can take.
    """
    shares = _shares(experts, distribution)
    active = sum(share > 0 for share in shares)
    if not top_k <= active:
        raise InputError(
            f"distribution {distribution!r} keeps {active} of {experts} experts active "
            f"at top-k {top_k}",
            "tokens cannot choose that many different experts",
            "use at least top-k active experts",
        )
    counts = [0] * experts
    left = tokens * top_k
    open_experts = [index for index in range(experts) if shares[index] > 0]
    while left:
        given = _largest_remainder([shares[index] for index in open_experts], left)
        for index, count in zip(open_experts, given, strict=True):
            counts[index] += count
        left = sum(max(0, count - tokens) for count in counts)
        counts = [min(count, tokens) for count in counts]
        open_experts = [index for index in open_experts if counts[index] < tokens]
    return tuple(counts)


def _shares(experts: int, distribution: str) -> list[float]:
    if distribution == "balanced":
        return [1.0] * experts
    match = re.fullmatch(r"(active|zipf)-(\d+(?:\.\d+)?)", distribution)
    if match is None:
        raise InputError(
            f"distribution {distribution!r} is unknown",
            "token counts cannot be made",
            "use balanced, active-N or zipf-S",
        )
    if match[1] == "zipf":
        return [(rank + 1) ** -float(match[2]) for rank in range(experts)]
    active = int(float(match[2]))
    return [1.0 if rank < active else 0.0 for rank in range(experts)]


def _largest_remainder(shares: list[float], total: int) -> list[int]:
    exact = [share / sum(shares) * total for share in shares]
    counts = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda index: (counts[index] - exact[index], index))
    for index in order[: total - sum(counts)]:
        counts[index] += 1
    return counts
