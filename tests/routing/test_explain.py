"""What an explanation says is what `route` did."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import OEA, Gate, Marginal, Rows, Scheduled, TopK, route
from costprof.routing.contract import SystemState
from costprof.routing.explain import ExpertNote, explain

E, K, T = 16, 4, 6
GATE = Gate(top_k=K)


@pytest.fixture(scope="module")
def table(make_table: Callable[..., CostTable]) -> CostTable:
    return make_table([(100.0, 1.0, 2.0), (20.0, 6.0, 3.0)] * (E // 2), K)


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(T, E, generator=torch.Generator().manual_seed(0)) * 1.5


@pytest.mark.parametrize("row", range(T))
def test_it_tells_what_route_did(table: CostTable, logits: torch.Tensor, row: int) -> None:
    plain = route(logits, table=table, gate=GATE)
    got = route(logits, table=table, gate=GATE, policy=OEA(k0=1))
    found = explain(logits, row, table=table, gate=GATE, policy=OEA(k0=1))
    by_fate: dict[str, set[int]] = {
        fate: {note.expert for note in found.experts if note.fate == fate}
        for fate in ("kept", "dropped", "refilled", "passed over")
    }
    before = set(plain.indices[row].tolist())
    after = set(got.indices[row][got.used[row]].tolist())
    assert by_fate["kept"] == before & after
    assert by_fate["dropped"] == before - after
    assert by_fate["refilled"] == after - before
    assert [note.rank for note in found.experts] == list(range(1, len(found.experts) + 1))
    scores = torch.softmax(logits[row], -1)
    assert [note.score for note in found.experts] == sorted(scores.tolist(), reverse=True)[
        : len(found.experts)
    ]
    lost = sum(note.share or 0.0 for note in found.experts if note.fate == "dropped")
    assert found.gate_mass_lost == pytest.approx(lost, abs=1e-6)
    assert sum(note.weight for note in found.experts) == pytest.approx(1.0)
    for note in found.experts:
        assert note.tokens_before == plain.counts[note.expert]
        assert note.tokens == got.counts[note.expert]
    assert found.latency_us == pytest.approx(float(got.predicted.latency_us))
    assert found.energy_mj_before == pytest.approx(float(plain.predicted.energy_mj))
    assert (found.active_before, found.active) == (
        int(plain.counts.count_nonzero()),
        int(got.counts.count_nonzero()),
    )
    assert len(found.reasons) == max(1, len(by_fate["dropped"]) + len(by_fate["refilled"]))


def test_prices_of_all_experts_add_up_to_what_the_layer_saved(
    table: CostTable, logits: torch.Tensor
) -> None:
    saved = 0.0
    seen: set[int] = set()
    for row in range(T):
        found = explain(logits, row, table=table, gate=GATE, policy=OEA(k0=1))
        for note in found.experts:
            saved += note.saved_us if note.expert not in seen else 0.0
            seen.add(note.expert)
    assert saved == pytest.approx(found.latency_us_before - found.latency_us)
    assert saved > 0


def test_rows_that_may_not_be_changed_are_told_why(table: CostTable, logits: torch.Tensor) -> None:
    rows = Rows(
        real=torch.tensor([True, True, True, True, True, False]),
        sequence=torch.tensor([0, 1, 1, 2, 3, 4]),
        position=torch.zeros(T, dtype=torch.int64),
        is_prefill=torch.tensor([True, False, False, False, False, False]),
    )
    common = {"table": table, "gate": GATE, "policy": OEA(k0=1), "rows": rows}
    said = [explain(logits, row, **common) for row in range(T)]
    assert [each.role for each in said] == [
        "prompt",
        "one of several of its sequence",
        "one of several of its sequence",
        "decode",
        "decode",
        "padding",
    ]
    assert "belongs to a prompt" in said[0].reasons[1]
    assert "later token of its own sequence" in said[1].reasons[1]
    assert any("was dropped" in reason for reason in said[3].reasons)
    assert said[5].experts == ()
    assert "padding" in said[5].reasons[0]


def test_plain_top_k_needs_no_reason(table: CostTable, logits: torch.Tensor) -> None:
    found = explain(logits, 0, table=table, gate=GATE, policy=TopK())
    assert found.reasons == ("TopK left the row its own top-k.",)
    assert all(note.fate == "kept" for note in found.experts)


@pytest.mark.parametrize("budget", [1.0, 0.6])
@pytest.mark.parametrize("q", [0.85, 0.6])
@pytest.mark.parametrize("lam", [0.0, 0.02, 0.2])
def test_marginal_says_what_let_an_expert_go_and_what_kept_it(
    make_table: Callable[..., CostTable], lam: float, q: float, budget: float
) -> None:
    """Each reason is tried: what it names is taken away, or counted."""
    flat = make_table([(100.0, 1.0, 2.0)] * 32, K)
    logits = torch.randn(8, 32, generator=torch.Generator().manual_seed(1)) * 1.5
    policy = Marginal(lam=lam, q=q, budget=budget)
    if policy.neutral:
        assert not any(each.why for each in explain_all(logits, flat, policy))
        return
    plain = route(logits, table=flat, gate=GATE)
    first, uses = plain.indices[:, 0].tolist(), plain.indices.tolist()
    free = route(logits, table=flat, gate=GATE, policy=Marginal(lam=lam, q=0.0, budget=budget))
    seen = set()
    for note in explain_all(logits, flat, policy):
        said = re.search(r"harm (\S+), saving (\S+)% of .*, harm / saving (\S+), lam", note.why)
        assert said is not None
        harm, saving, price = map(float, said.groups())
        assert harm / (saving / 100) == pytest.approx(price, rel=0.1)
        if note.fate == "dropped":
            assert price <= lam * 1.05 or "it went for the budget" in note.why
            continue
        assert note.fate == "kept"
        if "have it first" in note.why:
            assert f" {first.count(note.expert)} have it first" in note.why
        elif "more harm than lam allows" in note.why:
            assert price >= lam * 0.95
            assert ("budget is met" in note.why) is (budget < 1.0)
        else:
            assert "which q forbids" in note.why
            assert free.counts[note.expert] == 0 or budget < 1.0
        assert any(note.expert in row for row in uses)
        seen.add(note.why.partition(" (")[0][-12:])
    assert len(seen) > 1


def explain_all(logits: torch.Tensor, table: CostTable, policy: Marginal) -> list[ExpertNote]:
    """What each row's own experts are said to be kept or dropped for."""
    found = [
        explain(logits, row, table=table, gate=GATE, policy=policy) for row in range(len(logits))
    ]
    return [note for each in found for note in each.experts if note.share is not None]


def test_rows_that_may_not_be_changed_keep_their_experts_awake(
    table: CostTable, logits: torch.Tensor
) -> None:
    prompt = Rows(
        real=torch.ones(T, dtype=torch.bool),
        sequence=torch.tensor([0, 1, 2, 3, 4, 4]),
        position=torch.zeros(T, dtype=torch.int64),
        is_prefill=torch.tensor([False] * 4 + [True] * 2),
    )
    plain = route(logits, table=table, gate=GATE)
    fixed = plain.indices[4:].flatten().tolist()
    common = {"table": table, "gate": GATE, "policy": Marginal(lam=1.0), "rows": prompt}
    said = [note for row in range(4) for note in explain(logits, row, **common).experts]
    shared = [note for note in said if note.expert in fixed and note.why]
    assert shared
    for note in shared:
        assert f" {fixed.count(note.expert)} may not be changed" in note.why
    assert not any(note.why for note in explain(logits, 4, **common).experts)


def test_reasons_are_those_of_the_policy_of_the_moment(
    table: CostTable, logits: torch.Tensor
) -> None:
    policy = Scheduled.by_stage(cool=TopK(), hot=Marginal(lam=1.0))
    cool = explain(logits, 0, table=table, gate=GATE, policy=policy)
    hot = explain(logits, 0, table=table, gate=GATE, policy=policy, state=SystemState(stage="hot"))
    assert cool.criterion == "TopK: Each row keeps the experts its gate ranks first."
    assert hot.criterion == "Marginal: Trade gate mass for layer cost, priced by the table."
    assert all(note.why in " ".join(hot.reasons) for note in hot.experts)
    assert any(note.why for note in hot.experts)


def test_a_row_that_is_not_there_is_refused(table: CostTable, logits: torch.Tensor) -> None:
    with pytest.raises(InputError, match="row 6 of 6; nothing was explained; use 0 … 5"):
        explain(logits, T, table=table, gate=GATE, policy=TopK())
