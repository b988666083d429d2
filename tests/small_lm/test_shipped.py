"""The models that come with the package are what their manifests say, and small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from costprof.runtime.small_lm.checkpoint import load_checkpoint

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
PATHS = sorted(MODELS.glob("*.safetensors"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_shipped_model_loads_and_predicts_python(path: Path) -> None:
    assert path.stat().st_size <= 20 * 2**20
    model, manifest = load_checkpoint(path)
    assert (manifest.config.n_experts, manifest.config.top_k) == (64, 4)
    assert manifest.training["steps_made"] == manifest.training["steps"]
    text = b"    def __init__(self, name, value):\n        self.name = name\n        self."
    with torch.inference_mode():
        predicted = model(torch.tensor([list(text)]))[0, :-1].argmax(-1).tolist()
    hits = sum(a == b for a, b in zip(predicted, text[1:], strict=True))
    assert hits / len(predicted) > 0.5  # 1 of 256 by chance


def test_models_of_one_comparison_saw_the_same_text_and_steps() -> None:
    manifests = [load_checkpoint(path)[1] for path in PATHS]
    assert len(manifests) == 2
    one, two = manifests
    assert one.corpus == two.corpus
    same = {"seed", "steps", "steps_made", "tokens", "sequences", "learning_rate"}
    assert {k: one.training[k] for k in same} == {k: two.training[k] for k in same}
    assert {one.training["cost_weight"], two.training["cost_weight"]} == {0.0, 0.1}
