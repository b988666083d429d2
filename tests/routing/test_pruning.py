"""Which experts may be dropped together, against bounds checked row by row."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from costprof.routing.pruning import ONE, drop_ranks


def ranks(rows: list[dict[int, float]], n_experts: int, slack: float) -> list[int]:
    """Ranks with expert 0 the cheapest to drop, 1 the next, and so on."""
    indices = torch.tensor([list(row) for row in rows])
    share = torch.tensor([[round(value * ONE) for value in row.values()] for row in rows])
    price = torch.arange(n_experts, dtype=torch.float64)
    return drop_ranks(price, indices, share, math.floor(slack * ONE)).tolist()


def test_a_row_gives_up_its_cheapest_until_its_slack_is_spent() -> None:
    assert ranks([{0: 0.2, 1: 0.2, 2: 0.6}], 3, 0.4) == [0, 1, 3]
    assert ranks([{2: 0.6, 1: 0.2, 0: 0.2}], 3, 0.3) == [0, 3, 3]


def test_an_expert_too_much_for_one_row_stays_and_frees_the_slack_of_others() -> None:
    # Row 0 cannot lose expert 0; so row 1 does not, and can lose expert 1.
    assert ranks([{0: 0.9, 2: 0.1}, {0: 0.2, 1: 0.2}], 3, 0.3) == [3, 0, 1]


def test_the_second_round_uses_what_objections_left_over() -> None:
    # Round one: row 0 loses expert 0 and keeps 1; row 1, not knowing that, keeps 2.
    assert ranks([{0: 0.2, 1: 0.2}, {1: 0.2, 2: 0.2}], 3, 0.3) == [0, 3, 1]


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 10),
    slack=st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0]),
    staying=st.integers(0, 6),
)
def test_no_row_loses_more_than_its_slack_and_what_must_stay_stays(
    seed: int, tokens: int, slack: float, staying: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, 12, generator=generator)
    indices = scores.topk(4).indices
    share = torch.rand(tokens, 4, generator=generator, dtype=torch.float64)
    share = (share / share.sum(-1, keepdim=True) * ONE).to(torch.int64)
    price = torch.rand(12, generator=generator, dtype=torch.float64)
    price[:staying] = torch.inf
    allowed = math.floor(slack * ONE)
    rank = drop_ranks(price, indices, share, allowed).tolist()
    dropped = {e for e in range(12) if rank[e] < 12}
    assert sorted(rank[e] for e in dropped) == list(range(len(dropped)))
    assert dropped.isdisjoint(range(staying))
    for t in range(tokens):
        lost = sum(
            mass
            for e, mass in zip(indices[t].tolist(), share[t].tolist(), strict=True)
            if e in dropped
        )
        assert lost <= allowed
    unused = set(range(staying, 12)) - set(indices.flatten().tolist())
    assert unused <= dropped
