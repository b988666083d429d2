"""From what ran in a model to the sweep its experts need."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence

from costprof.core.errors import InputError
from costprof.core.expert import Activation, Dtype
from costprof.profiler.from_model.scopes import Scopes
from costprof.profiler.from_model.shapes import ExpertGroup, Ffn, expert_groups
from costprof.profiler.from_model.trace import Matmul, Trace
from costprof.profiler.spec import (
    ExpertRun,
    ExpertSpec,
    LayerSpec,
    MeasureSpec,
    MoeSpec,
    SweepSpec,
)

NO_SWEEP = "no sweep was proposed"
_MAX_SEEN = 8
_MAX_NOTED = 8
_LARGE_SHARE = 0.01
_DTYPES: dict[str, Dtype] = {
    "float32": "float32",
    "bfloat16": "bfloat16",
    "float16": "float16",
}


def propose(trace: Trace, *, name: str) -> tuple[SweepSpec, list[str]]:
    """Return the sweep for the experts seen in `trace`, and notes. See `spec_from_model`.

    Raises:
        InputError: none was recognised.
    """
    scopes = Scopes(trace)
    groups = [
        group
        for root in trace.roots
        for group in expert_groups(root, scopes.first_inner, scopes.plausible)
        if scopes.worked(group)
    ]
    if not groups:
        raise InputError(
            f"no expert was recognised among the {len(trace.modules)} modules that ran",
            NO_SWEEP,
            "describe the experts in a sweep file, see docs/sweep.md",
        )
    proposal = _Proposal(name, scopes)
    for group in groups:
        proposal.add(group)
    return proposal.finished(groups)


class _Proposal:
    """Collects classes, layers and MoEs; equal ones are proposed once."""

    def __init__(self, name: str, scopes: Scopes) -> None:
        self._name = name
        self._scopes = scopes
        self._notes: dict[str, None] = {}
        self._classes: dict[ExpertSpec, str] = {}
        self._seen: dict[str, set[int]] = {}
        self._layers: dict[tuple[str, int, int], set[int]] = {}
        self._moes: dict[tuple[tuple[tuple[str, int], ...], int], int] = {}
        self._matched: set[int] = set()

    def add(self, group: ExpertGroup) -> None:
        activation = self._activation(group)
        runs: list[tuple[str, int]] = []
        assignments = 0.0
        for ffn in group.ffns:
            name = self._class(ffn, activation)
            runs.append((name, group.stacked or 1))
            made = self._scopes.matmuls(ffn, stacked=group.stacked > 0)
            self._matched.update(matmul.number for matmul in made)
            self._seen[name] |= self._tokens(made, group)
            assignments += sum(m.batch * m.rows for m in made) / ffn.shape.matrices
            if ffn.has_bias:
                self._note("biases of experts are left out")
        if group.experts > 1:
            self._add_moe(group, runs, assignments)

    def _add_moe(self, group: ExpertGroup, runs: list[tuple[str, int]], assignments: float) -> None:
        label = f"the {group.experts} experts in {group.name or 'the model'}"
        choices = self._scopes.router(group)
        top_k = next((choice.k for choice in choices if choice.k), 0)
        rows = sum(choice.rows for choice in choices)
        if not top_k and rows and assignments % rows == 0:
            top_k = int(assignments) // rows
        if not 1 <= top_k <= group.experts:
            self._note(
                f"no top-k choice was seen for {label}: they are measured, but neither as a "
                "layer nor as an MoE"
            )
            return
        merged = tuple(
            (name, sum(count for _, count in alike))
            for name, alike in itertools.groupby(runs, key=lambda run: run[0])
        )
        self._moes[(merged, top_k)] = self._moes.get((merged, top_k), 0) + 1
        if len(merged) == 1:
            key = (merged[0][0], group.experts, top_k)
            self._layers.setdefault(key, set()).update(choice.rows for choice in choices)
        else:
            self._note(f"{label} differ: no grouped layer is proposed")

    def finished(self, groups: Sequence[ExpertGroup]) -> tuple[SweepSpec, list[str]]:
        moes = []
        for number, ((runs, top_k), times) in enumerate(self._moes.items(), start=1):
            name = self._name if len(self._moes) == 1 else f"{self._name}-{number}"
            moes.append(
                MoeSpec(
                    name=name,
                    top_k=top_k,
                    experts=[ExpertRun(expert=expert, count=count) for expert, count in runs],
                )
            )
            total = sum(count for _, count in runs)
            self._note(f"MoE {name}: {total} experts, top-{top_k}, {times} layer(s) of the model")
        alone = sum(group.experts == 1 for group in groups)
        if alone:
            self._note(f"{alone} FFN(s) stand alone (dense or shared): measured, not routed")
        spec = SweepSpec(
            name=self._name,
            experts={name: expert for expert, name in self._classes.items()},
            measure=[
                MeasureSpec(expert=name, ops=["expert"], tokens=self._cover(seen))
                for name, seen in self._seen.items()
            ],
            layer=[
                LayerSpec(
                    expert=name,
                    experts=experts,
                    top_k=top_k,
                    tokens=self._cover(rows),
                    distributions=["balanced", "zipf-1.2"],
                )
                for (name, experts, top_k), rows in self._layers.items()
            ],
            moe=moes,
        )
        unmatched = [m for m in self._scopes.trace.matmuls if m.number not in self._matched]
        self._note_unmatched(unmatched)
        return spec, list(self._notes)

    def _class(self, ffn: Ffn, activation: Activation) -> str:
        expert = ExpertSpec(
            d_model=ffn.shape.d_model,
            d_ff=ffn.shape.d_ff,
            activation=activation,
            dtype=self._dtype(str(ffn.shape.dtype).removeprefix("torch.")),
        )
        if expert not in self._classes:
            name = f"{activation}-{expert.d_model}x{expert.d_ff}-{expert.dtype}"
            self._classes[expert] = name
            self._seen[name] = set()
        return self._classes[expert]

    def _dtype(self, stated: str) -> Dtype:
        if stated not in _DTYPES:
            self._note(f"weights of {stated} have no kernel here: measured as bfloat16")
        return _DTYPES.get(stated, "bfloat16")

    def _activation(self, group: ExpertGroup) -> Activation:
        gated = group.ffns[0].shape.gated
        seen = self._scopes.activations(group)
        ours = "silu" if gated else "relu"
        # SiLU written out is a sigmoid and a product.
        if ours not in seen and not (gated and "sigmoid" in seen):
            self._note(
                f"{' and '.join(sorted(seen))} in experts is measured as "
                f"{'SwiGLU' if gated else 'ReLU'}: same matrices, other function"
            )
        return "swiglu" if gated else "relu"

    def _tokens(self, made: Iterable[Matmul], group: ExpertGroup) -> set[int]:
        tokens = set()
        for matmul in made:
            if matmul.groups or matmul.batch not in (1, group.stacked):
                rows = matmul.batch * matmul.rows
                self._note(
                    "a batched product hides how many tokens each expert got: their mean is used"
                )
                tokens.add(max(1, round(rows / group.experts)))
            elif matmul.rows:
                tokens.add(matmul.rows)
        return tokens

    def _cover(self, seen: set[int]) -> list[int]:
        """Return the counts seen and the powers of two around each, thinned if there are many."""
        counts = sorted(seen)
        if len(counts) > _MAX_SEEN:
            self._note(
                f"{len(counts)} token counts from {counts[0]} to {counts[-1]} were seen: "
                f"{_MAX_SEEN} of them are measured"
            )
            step = (len(counts) - 1) / (_MAX_SEEN - 1)
            counts = [counts[round(step * number)] for number in range(_MAX_SEEN)]
        around = {n for count in counts for n in _neighbours(count)}
        return sorted({*counts, *around})

    def _note_unmatched(self, matmuls: Iterable[Matmul]) -> None:
        scopes = self._scopes
        flops: dict[str, float] = {}
        times: dict[str, int] = {}
        for matmul in matmuls:
            batch = f"{matmul.batch} x " if matmul.batch > 1 else ""
            place = ""
            if matmul.scope:
                module = scopes.trace.modules[matmul.scope[-1]]
                place = f" in {scopes.names.get(id(module)) or type(module).__name__}"
            shape = f"{batch}[{matmul.rows}, {matmul.inner}] x [{matmul.inner}, {matmul.columns}]"
            # Layers differ in their number alone.
            text = f"{shape}{re.sub(r'[0-9]+', '*', place)}"
            flops[text] = flops.get(text, 0.0) + matmul.flops
            times[text] = times.get(text, 0) + 1
        total = sum(matmul.flops for matmul in scopes.trace.matmuls)
        large = sorted(
            (text for text in flops if flops[text] >= _LARGE_SHARE * total),
            key=lambda text: -flops[text],
        )
        for text in large[:_MAX_NOTED]:
            share = flops[text] / total
            self._note(f"no expert's: {text}, {times[text]} time(s), {share:.0%} of the work")
        if len(large) > _MAX_NOTED:
            self._note(f"{len(large) - _MAX_NOTED} more products belong to no expert")

    def _note(self, text: str) -> None:
        self._notes.setdefault(text)


def _neighbours(count: int) -> set[int]:
    """Powers of two next to `count` on both sides.

    >>> sorted(_neighbours(5)), sorted(_neighbours(8)), sorted(_neighbours(1))
    ([4, 8], [4, 16], [2])
    """
    above = 1 << count.bit_length()
    below = 1 << ((count - 1).bit_length() - 1) if count > 1 else 0
    return {below, above} - {0}
