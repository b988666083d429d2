"""The snippets of docs/integrations.md, run as they stand."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_moes import N_EXPERTS, TOP_K, flat_table, tiny_moe
from torch import Tensor, nn

from costprof.routing import Gate, Marginal, TopK, route
from costprof.routing.gate import select

PAGE = Path(__file__).resolve().parents[2] / "docs" / "integrations.md"
ATTACHING, CUSTOM = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def run(snippet: str, folder: Path, **names: Any) -> dict[str, Any]:
    path = folder / "snippet.py"
    path.write_text(snippet)
    return runpy.run_path(str(path), init_globals=names)


def test_attaching(tmp_path: Path) -> None:
    model = tiny_moe("qwen3_moe")
    prompts = {"input_ids": torch.full((4, 3), 5), "attention_mask": torch.ones(4, 3)}
    done = run(ATTACHING, tmp_path, model=model, table=flat_table(), prompts=prompts)
    # Two runs of a prompt and three decode steps in two layers.
    assert done["attached"].summary().calls == 2 * 4 * 2
    assert not any(each._forward_hooks for each in model.modules())


class Expert(nn.Linear):
    """Counts its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


@pytest.mark.parametrize("policy", [TopK(), Marginal(lam=5.0, q=0.3)])
@torch.no_grad()
def test_a_custom_model_needs_five_lines(tmp_path: Path, policy: Any) -> None:
    assert len(CUSTOM.splitlines()) == 5
    torch.manual_seed(0)
    router = nn.Linear(8, N_EXPERTS)
    experts = [Expert(8, 8) for _ in range(N_EXPERTS)]
    x, table = torch.randn(6, 8), flat_table()
    out = run(
        CUSTOM,
        tmp_path,
        **{"torch": torch, "route": route, "Gate": Gate},
        **{"router": router, "experts": experts, "x": x, "table": table, "policy": policy},
    )["out"]
    gate = Gate(top_k=TOP_K)
    plain = select(router(x), gate)
    called = sum(each.calls for each in experts)
    if isinstance(policy, TopK):
        assert called == len(plain.indices.unique())
    else:
        assert called < len(plain.indices.unique())
    plan = route(router(x), table=table, policy=policy, gate=gate)
    for row in range(6):
        want = sum(
            plan.weights[row, slot] * nn.Linear.forward(experts[plan.indices[row, slot]], x[row])
            for slot in range(TOP_K)
        )
        torch.testing.assert_close(out[row], want)
