"""Made-up routers and batches: uneven in the way they claim."""

from __future__ import annotations

import pytest
import torch

from costprof.core.errors import InputError
from costprof.runtime.synthetic import Workload

E, D = 32, 64


def logits_of(workload: Workload, tokens: int = 512, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    router = workload.router(E, D, generator)
    return workload.batch(tokens, D, generator) @ router.T


def test_the_same_seed_gives_the_same_batch() -> None:
    assert torch.equal(logits_of(Workload()), logits_of(Workload()))


def test_popularity_follows_the_zipf_exponent() -> None:
    even = logits_of(Workload(skew=0.0, topic_share=0.0)).mean(0)
    skewed = logits_of(Workload(skew=1.0, topic_share=0.0)).mean(0).sort(descending=True).values
    assert even.std() < 0.2
    expected = -torch.arange(1, E + 1).log()
    assert torch.allclose(skewed, expected - expected.mean(), atol=0.4)


def test_tokens_of_one_topic_have_logits_in_common() -> None:
    shared = logits_of(Workload(skew=0.0, topics=1, topic_share=0.9)).mean(0)
    assert shared.std() == pytest.approx(1.5 * 0.9**0.5, rel=0.3)


def test_spread_is_the_deviation_of_a_logit() -> None:
    assert logits_of(Workload(skew=0.0, topics=64)).std() == pytest.approx(1.5, rel=0.15)


def test_parameters_out_of_range_are_refused() -> None:
    with pytest.raises(InputError, match=r"skew is -1; no batch was made; use skew and spread"):
        Workload(skew=-1)
    with pytest.raises(InputError, match=r"topic_share is 2; .*"):
        Workload(topic_share=2)
