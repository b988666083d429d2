"""One training step of the small language model, and a state that training can go on from.

Each step's batch is drawn by (seed, step) alone, so that an interrupted run that goes on meets
the data it would have met.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from costprof.core.errors import InputError
from costprof.core.files import replacing
from costprof.costmodel.table import CostTable
from costprof.routing.gate import select
from costprof.routing.losses import cost_share, load_balance
from costprof.runtime.small_lm.model import Routed, SmallLM, SmallLMConfig
from costprof.runtime.small_lm.text import DOMAINS, Corpus

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How to train: AdamW, learning rate up over `warmup` steps, then linearly down to 0.

    Attributes:
        sequences: Sequences a step, `context` bytes each, the domains in turn.
        balance_weight: Weight of the balance loss, mean over layers.
        cost_weight: λ of the cost loss, mean over layers; reached linearly over the first fifth.
        cost_batch: Decode batch whose cost is expected.
    """

    seed: int = 0
    steps: int = 2000
    sequences: int = 12
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    balance_weight: float = 0.01
    cost_weight: float = 0.0
    cost_batch: int = 16

    def rate_at(self, step: int) -> float:
        """Learning rate of `step`."""
        left = max(self.steps - step, 0) / max(self.steps - self.warmup, 1)
        return self.learning_rate * min((step + 1) / self.warmup, left)

    def cost_weight_at(self, step: int) -> float:
        """λ of `step`."""
        return self.cost_weight * min(1.0, 5.0 * step / self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLosses:
    """Losses of one step: the task's in bits per byte, the others as they are defined."""

    bits_per_byte: float
    balance: float
    cost: float


class Trainer:
    """A model in training.

    Attributes:
        model: The model, float32.
        step: Steps made.
    """

    def __init__(
        self, config: SmallLMConfig, options: TrainingOptions, table: CostTable | None = None
    ) -> None:
        """Begin with weights drawn by the options' seed.

        Args:
            table: Prices for the cost loss; needed where `cost_weight` is not 0.

        Raises:
            InputError: the cost has a weight and no table, or one of another number of experts.
        """
        if options.cost_weight and (table is None or table.n_experts != config.n_experts):
            experts = "no table" if table is None else f"a table of {table.n_experts} experts"
            raise InputError(
                f"{experts} for {config.n_experts} experts",
                "their cost is unknown",
                "name a table of as many experts or use cost weight 0",
            )
        self.model = SmallLM(config)
        self.model.initialise(torch.Generator().manual_seed(options.seed))
        self.options, self.table, self.step = options, table, 0
        parameters = list(self.model.parameters())
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(
            groups,
            betas=(0.9, 0.95),
            weight_decay=options.weight_decay,
            fused=True,
        )

    def train_step(self, corpus: Corpus) -> StepLosses:
        """Make one step."""
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate_at(self.step)
        text = training_batch(corpus, self.model.config.context + 1, options, self.step)
        gate = self.model.config.gate
        routed: list[Tensor] = []

        def router(layer: int, logits: Tensor) -> Routed:
            routed.append(logits.flatten(0, 1))
            choice = select(routed[-1], gate)
            shape = (*logits.shape[:2], -1)
            return Routed(indices=choice.indices.view(shape), weights=choice.weights.view(shape))

        predicted = self.model(text[:, :-1], router)
        task = F.cross_entropy(predicted.flatten(0, 1), text[:, 1:].flatten())
        balance = torch.stack([load_balance(each, gate) for each in routed]).mean()
        loss = task + options.balance_weight * balance
        cost = torch.zeros(())
        if options.cost_weight and self.table is not None:
            how: dict[str, Any] = {"table": self.table, "gate": gate, "batch": options.cost_batch}
            costs = [cost_share(each, **how) for each in routed]
            cost = torch.stack(costs).mean()
            loss = loss + options.cost_weight_at(self.step) * cost
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), options.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return StepLosses(
            bits_per_byte=task.item() / math.log(2), balance=balance.item(), cost=cost.item()
        )

    def save(self, path: Path) -> None:
        """Write everything `resume` needs to `path`, atomically."""
        tensors = {}
        for name, parameter in self.model.named_parameters():
            tensors[f"model.{name}"] = parameter.detach()
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{kind}.{name}": state[kind] for kind in _MOMENTS if kind in state}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={"step": str(self.step)})

    def resume(self, path: Path) -> None:
        """Go on from what `save` wrote at `path`.

        Raises:
            InputError: it is damaged or of another model.
        """
        try:
            with safe_open(path, framework="pt") as file:
                step = int(file.metadata()["step"])
                for name, parameter in self.model.named_parameters():
                    with torch.no_grad():
                        parameter.copy_(file.get_tensor(f"model.{name}"))
                    if step:
                        self.optimizer.state[parameter] = {
                            "step": torch.tensor(float(step)),
                            **{kind: file.get_tensor(f"{kind}.{name}") for kind in _MOMENTS},
                        }
        except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise InputError(
                f"{path} is no state of this training ({error})",
                "training cannot go on",
                "remove it to begin anew",
            ) from error
        self.step = step


def training_batch(corpus: Corpus, length: int, options: TrainingOptions, step: int) -> Tensor:
    """Return int64 [sequences, length], row i from domain i mod 3, at places of its own."""
    seed = int.from_bytes(struct.pack("<II", options.seed, step), "little")
    generator = np.random.default_rng(seed)
    rows = []
    for row in range(options.sequences):
        stream = corpus.streams["train", DOMAINS[row % len(DOMAINS)]]
        begin = int(generator.integers(0, len(stream) - length + 1))
        rows.append(stream[begin : begin + length])
    return torch.from_numpy(np.stack(rows).astype(np.int64))
