"""The snippet of docs/routing.md that records a trace, run as it stands on a smaller model."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch
from tiny_moes import N_EXPERTS, TOP_K, tiny_moe
from torch import Tensor

from costprof.routing import Gate
from costprof.routing.gate import select
from costprof.runtime.trace import load_trace, write_trace

PAGE = Path(__file__).resolve().parents[2] / "docs" / "routing.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@torch.no_grad()
def test_what_is_recorded_is_what_the_routers_chose_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snippet,) = [each for each in SNIPPETS if "write_trace" in each]
    script = tmp_path / "snippet.py"
    script.write_text(snippet.replace("layers[7]", "layers[1]"))
    model = tiny_moe("olmoe")
    model.generation_config.eos_token_id = None
    chosen: list[Tensor] = []
    model.model.layers[1].mlp.gate.register_forward_hook(lambda *call: chosen.append(call[2][2]))
    monkeypatch.chdir(tmp_path)
    names = {"write_trace": write_trace, "Path": Path, "Gate": Gate}
    prompts = torch.arange(3, 15).view(3, 4)
    runpy.run_path(str(script), init_globals={**names, "model": model, "prompts": prompts})
    trace = load_trace(tmp_path / "layer7.safetensors")
    assert [tuple(each.shape) for each in trace.logits] == [(3, N_EXPERTS)] * 63
    gate = Gate(top_k=TOP_K, renormalise=trace.gate["renormalise"])
    for logits, indices in zip(trace.logits, chosen[1:], strict=True):
        assert torch.equal(select(logits, gate).indices, indices)
