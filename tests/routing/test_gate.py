"""Gates of known models, each against its own definition written out row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from costprof.core.errors import InputError
from costprof.routing import Gate
from costprof.routing.gate import gate_ranking, gate_scores, select

T, E = 5, 16


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(T, E, generator=torch.Generator().manual_seed(3))


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def best(values: list[float], k: int) -> list[int]:
    return sorted(range(len(values)), key=lambda e: -values[e])[:k]


def assert_selects(gate: Gate, logits: Tensor, expected: list[dict[int, float]]) -> None:
    selection = select(logits, gate)
    for t, row in enumerate(expected):
        chosen = dict(
            zip(selection.indices[t].tolist(), selection.weights[t].tolist(), strict=True)
        )
        assert chosen == pytest.approx(row, rel=1e-5)
    assert selection.used.all()
    assert not selection.gate_mass_lost.any()


def test_mixtral_and_qwen3_renormalise_the_chosen(logits: Tensor) -> None:
    expected = []
    for row in logits.tolist():
        scores = softmax(row)
        chosen = best(scores, 2)
        total = sum(scores[e] for e in chosen)
        expected.append({e: scores[e] / total for e in chosen})
    assert_selects(Gate(top_k=2), logits, expected)


def test_olmoe_keeps_the_probabilities(logits: Tensor) -> None:
    expected = []
    for row in logits.tolist():
        scores = softmax(row)
        expected.append({e: scores[e] for e in best(scores, 4)})
    assert_selects(Gate(top_k=4, renormalise=False), logits, expected)


def test_gpt_oss_softmax_over_the_chosen_logits_is_the_renormalised_one(logits: Tensor) -> None:
    expected = []
    for row in logits.tolist():
        chosen = best(row, 4)
        expected.append(dict(zip(chosen, softmax([row[e] for e in chosen]), strict=True)))
    assert_selects(Gate(top_k=4), logits, expected)


def test_deepseek_v3_biased_choice_in_groups_unbiased_scaled_weights(logits: Tensor) -> None:
    bias = torch.linspace(-0.4, 0.4, E)
    gate = Gate(top_k=3, score="sigmoid", bias=bias, n_group=4, topk_group=2, scaling=2.5)
    expected = []
    for row in logits.tolist():
        scores = [1 / (1 + math.exp(-value)) for value in row]
        biased = [score + b for score, b in zip(scores, bias.tolist(), strict=True)]
        groups = [biased[4 * g : 4 * g + 4] for g in range(4)]
        allowed = best([sum(sorted(group)[-2:]) for group in groups], 2)
        masked = [value if e // 4 in allowed else -math.inf for e, value in enumerate(biased)]
        chosen = best(masked, 3)
        total = sum(scores[e] for e in chosen)
        expected.append({e: 2.5 * scores[e] / total for e in chosen})
    assert_selects(gate, logits, expected)


def test_a_negative_bias_does_not_let_a_forbidden_group_win(logits: Tensor) -> None:
    gate = Gate(top_k=4, bias=torch.full((E,), -5.0), n_group=4, topk_group=1)
    selection = select(logits, gate)
    assert (selection.indices // 4 == selection.indices[:, :1] // 4).all()
    ranking = gate_ranking(selection.scores, gate)
    assert torch.isinf(ranking).sum(-1).tolist() == [12] * T


def test_a_row_whose_scores_underflow_has_weight_zero_not_nan() -> None:
    selection = select(torch.full((1, 4), -200.0), Gate(top_k=2, score="sigmoid"))
    assert selection.weights.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_a_row_has_the_same_scores_in_any_batch(score: str) -> None:
    """Tails of vectors, of 1 to 15 values, round no other way than vectors."""
    gate = Gate(top_k=2, score=score)  # type: ignore[arg-type]
    logits = torch.randn(2000, 7, generator=torch.Generator().manual_seed(0)) * 3
    together = gate_scores(logits, gate)
    alone = torch.cat([gate_scores(row, gate) for row in logits.split(1)])
    assert torch.equal(alone, together)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_k": 0}, "top_k is 0; the gate cannot be built; use a whole number of at least 1"),
        ({"top_k": 2.5}, "top_k is 2.5; .*; use a whole number"),
        ({"top_k": True}, "top_k is True; .*; use a whole number"),
        ({"top_k": 2, "scaling": math.nan}, "scaling is nan; .*; use -1e[+]30 … 1e[+]30"),
        ({"top_k": 2, "score": "relu"}, "score 'relu' is unknown; .*; use softmax or sigmoid"),
        ({"top_k": 2, "n_group": 2, "topk_group": 3}, "topk_group 3 of 2 groups; .*; choose"),
    ],
)
def test_impossible_gates_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gate(**fields)


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        (Gate(top_k=17), "top_k is 17 with 16 experts to choose from; .*; use a smaller top_k"),
        (Gate(top_k=9, n_group=4, topk_group=2), "top_k is 9 with 8 experts"),
        (Gate(top_k=2, n_group=3), "16 experts in 3 groups; .*; use a number of groups"),
        (Gate(top_k=2, bias=torch.zeros(4)), r"bias has shape \[4\]; .*shape \[16\]"),
    ],
)
def test_gates_that_do_not_fit_the_experts_are_refused(
    gate: Gate, message: str, logits: Tensor
) -> None:
    with pytest.raises(InputError, match=message):
        select(logits, gate)


@pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(3, 4, dtype=torch.int64)])
def test_logits_must_be_a_floating_matrix(bad: Tensor) -> None:
    with pytest.raises(InputError, match="give floating-point logits of shape"):
        select(bad, Gate(top_k=1))
