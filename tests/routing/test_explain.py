"""What an explanation says is what `route` did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from costprof.core.errors import InputError
from costprof.costmodel.table import CostTable
from costprof.routing import OEA, Gate, Rows, TopK, route
from costprof.routing.explain import explain

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


def test_a_row_that_is_not_there_is_refused(table: CostTable, logits: torch.Tensor) -> None:
    with pytest.raises(InputError, match="row 6 of 6; nothing was explained; use 0 … 5"):
        explain(logits, T, table=table, gate=GATE, policy=TopK())
