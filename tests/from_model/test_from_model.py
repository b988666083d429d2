"""Models run once: which experts, tokens and routers are found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from costprof.core.errors import InputError
from costprof.profiler.from_model import spec_from_model
from costprof.profiler.from_model.propose import propose
from costprof.profiler.from_model.trace import trace_run
from costprof.profiler.plan import make_plan
from costprof.profiler.spec import SweepSpec

D, F, E, K, T = 32, 48, 6, 2, 20


class SwiGlu(nn.Module):
    """Gate, up and down apart."""

    def __init__(self, d_model: int = D, d_ff: int = F, *, bias: bool = False) -> None:
        super().__init__()
        self.w1 = nn.Linear(d_model, d_ff, bias=bias)
        self.w2 = nn.Linear(d_ff, d_model, bias=bias)
        self.w3 = nn.Linear(d_model, d_ff, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class FusedGelu(nn.Module):
    """Gate and up in one, with another activation."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up = nn.Linear(D, 2 * F, bias=False)
        self.down = nn.Linear(F, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(functional.gelu(gate) * up)


def relu_ffn() -> nn.Module:
    return nn.Sequential(nn.Linear(D, F), nn.ReLU(), nn.Linear(F, D))


class Wrapped(nn.Module):
    """An expert that holds its FFN one level deeper."""

    def __init__(self) -> None:
        super().__init__()
        self.net = relu_ffn()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


def choose(x: torch.Tensor, gate: nn.Linear, k: int) -> torch.Tensor:
    """Chosen experts `[T, k]`; the first two tokens all go to the same ones."""
    return gate(x).softmax(-1).topk(k, dim=-1).indices


class LoopMoe(nn.Module):
    """A module per expert, called in turn on its tokens."""

    def __init__(self, experts: list[nn.Module], k: int = K) -> None:
        super().__init__()
        self.gate = nn.Linear(D, len(experts), bias=False)
        self.experts = nn.ModuleList(experts)
        self.k = k
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        indices = choose(x, self.gate, self.k)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (indices == number).any(-1).nonzero().flatten()
            if len(rows):
                self.seen.append(len(rows))
                out[rows] += expert(x[rows])
        return out


class StackedMoe(nn.Module):
    """All experts in two 3-D weights; `how` says how they are multiplied."""

    class Experts(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.how = how
            wide, back = ((2 * F, D), (D, F)) if how == "loop" else ((D, 2 * F), (F, D))
            self.gate_up_proj = nn.Parameter(torch.randn(E, *wide))
            self.down_proj = nn.Parameter(torch.randn(E, *back))
            self.seen: list[int] = []

        def forward(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            return getattr(self, self.how)(x, indices)

        def loop(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(x)
            for number in range(E):
                rows = (indices == number).any(-1).nonzero().flatten()
                if len(rows):
                    self.seen.append(len(rows))
                    gate, up = functional.linear(x[rows], self.gate_up_proj[number]).chunk(2, -1)
                    hidden = functional.silu(gate) * up
                    out[rows] += functional.linear(hidden, self.down_proj[number])
            return out

        def batched(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            gate, up = torch.bmm(x.expand(E, *x.shape), self.gate_up_proj).chunk(2, -1)
            # SiLU written out, as some models do.
            return torch.bmm(gate * torch.sigmoid(gate) * up, self.down_proj).sum(0)

        def gathered(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            """A copy of the weights for every assignment, which multiply one column each."""
            order = indices.flatten()
            columns = x.repeat_interleave(K, 0)[..., None]
            gate, up = torch.bmm(self.gate_up_proj[order].mT, columns).chunk(2, 1)
            return torch.bmm(self.down_proj[order].mT, functional.silu(gate) * up)

        def grouped(self, x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
            order = indices.flatten().argsort()
            counts = indices.flatten().bincount(minlength=E)
            self.seen += counts[counts > 0].tolist()
            ends = counts.cumsum(0).to(torch.int32)
            rows = x[order // indices.shape[1]]
            gate, up = functional.grouped_mm(rows, self.gate_up_proj, offs=ends).chunk(2, -1)
            return functional.grouped_mm(functional.silu(gate) * up, self.down_proj, offs=ends)

    def __init__(self, how: str) -> None:
        super().__init__()
        self.gate = nn.Linear(D, E, bias=False)
        self.experts = self.Experts(how)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.experts(x, choose(x, self.gate, K))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 2 * D, bias=False)  # grouped heads: just the shape of a gated FFN
        self.out = nn.Linear(D, D, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key = self.qkv(x).chunk(2, -1)
        weights = torch.softmax(query @ key.mT, -1)
        return self.out(functional.silu(weights @ key))


class Layer(nn.Module):
    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.attention = Attention()
        self.shared = SwiGlu(d_ff=2 * F)
        self.ffn = ffn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(x)
        return x + self.ffn(x) + self.shared(x)


class Decoder(nn.Module):
    def __init__(self, ffns: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(ffn) for ffn in ffns)
        self.head = nn.Linear(D, 1000, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def proposed(model: nn.Module, tokens: int = T) -> tuple[SweepSpec, list[str]]:
    torch.manual_seed(0)
    weight = next(model.parameters())
    x = torch.randn(tokens, D, dtype=weight.dtype)
    spec, notes = propose(trace_run(lambda: model(x)), name="model")
    make_plan(spec, "cpu")
    return spec, notes


def only_class(spec: SweepSpec) -> tuple[int, int, str, str]:
    (expert,) = spec.experts.values()
    return expert.d_model, expert.d_ff, expert.activation, expert.dtype


def around(counts: list[int]) -> set[int]:
    """The slow way to say: the counts, and the powers of two next to each."""
    powers = [2**p for p in range(20)]
    below = {max(p for p in powers if p < n) for n in counts if n > 1}
    return set(counts) | below | {min(p for p in powers if p > n) for n in counts}


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (SwiGlu, (D, F, "swiglu", "float32")),
        (lambda: SwiGlu(d_ff=D), (D, D, "swiglu", "float32")),
        (lambda: SwiGlu().to(torch.bfloat16), (D, F, "swiglu", "bfloat16")),
        (FusedGelu, (D, F, "swiglu", "float32")),
        (relu_ffn, (D, F, "relu", "float32")),
        (Wrapped, (D, F, "relu", "float32")),
    ],
)
def test_module_per_expert(make: Callable[[], nn.Module], found: tuple[int, int, str, str]) -> None:
    model = LoopMoe([make() for _ in range(E)])
    spec, _ = proposed(model.to(next(model.experts.parameters()).dtype))
    assert only_class(spec) == found
    (moe,) = spec.moe
    assert (moe.top_k, [run.count for run in moe.experts]) == (K, [E])
    assert sum(model.seen) == T * K
    assert set(spec.measure[0].tokens) == around(model.seen)
    assert (spec.layer[0].experts, spec.layer[0].top_k) == (E, K)
    assert spec.layer[0].tokens == [16, 20, 32]


@pytest.mark.parametrize("how", ["loop", "grouped"])
def test_stacked_experts(how: str) -> None:
    model = StackedMoe(how)
    spec, _ = proposed(model)
    assert only_class(spec) == (D, F, "swiglu", "float32")
    assert (spec.moe[0].top_k, spec.moe[0].experts[0].count) == (K, E)
    assert set(spec.measure[0].tokens) == around(model.experts.seen)


def test_stacked_experts_that_all_see_all_tokens() -> None:
    spec, _ = proposed(StackedMoe("batched"))
    assert only_class(spec) == (D, F, "swiglu", "float32")
    assert spec.measure[0].tokens == [16, 20, 32]
    assert spec.moe[0].top_k == K


def test_weights_gathered_per_assignment() -> None:
    spec, notes = proposed(StackedMoe("gathered"))
    assert only_class(spec) == (D, F, "swiglu", "float32")
    assert set(spec.measure[0].tokens) == around([round(T * K / E)])
    assert any("hides how many tokens each expert got" in note for note in notes)


def test_stacked_orientation_comes_from_what_ran() -> None:
    """`[E, a, b]` and `[E, b, a]` alone do not tell which side is the model's."""

    class Experts(nn.Module):
        def __init__(self, first: tuple[int, int], second: tuple[int, int]) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(E, *first))
            self.second = nn.Parameter(torch.randn(E, *second))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first = self.first if self.first.shape[1] == x.shape[-1] else self.first.mT
            second = self.second if self.second.shape[2] == x.shape[-1] else self.second.mT
            return torch.bmm(functional.relu(torch.bmm(x.expand(E, *x.shape), first)), second)

    for model in (Experts((D, F), (F, D)), Experts((F, D), (D, F))):
        assert only_class(proposed(model)[0]) == (D, F, "relu", "float32")


def test_whole_decoder() -> None:
    spec, notes = proposed(Decoder([LoopMoe([SwiGlu() for _ in range(E)]) for _ in range(3)]))
    assert {(e.d_model, e.d_ff) for e in spec.experts.values()} == {(D, F), (D, 2 * F)}
    assert len(spec.moe) == len(spec.layer) == 1, "equal layers are proposed once"
    assert "MoE model: 6 experts, top-2, 3 layer(s) of the model" in notes
    assert "3 FFN(s) stand alone (dense or shared): measured, not routed" in notes
    head = [note for note in notes if "[20, 32] x [32, 1000] in head" in note]
    assert len(head) == 1
    assert "1 time(s)" in head[0]
    (qkv,) = [note for note in notes if "layers.*.attention.qkv" in note]
    assert "no expert's: [20, 32] x [32, 64]" in qkv
    assert "3 time(s)" in qkv


def test_mixed_experts_keep_their_order() -> None:
    model = LoopMoe([SwiGlu(), SwiGlu(), SwiGlu(d_ff=2 * F), SwiGlu()], k=4)
    spec, notes = proposed(model)
    small, large = spec.experts
    runs = [(run.expert, run.count) for run in spec.moe[0].experts]
    assert runs == [(small, 2), (large, 1), (small, 1)]
    assert spec.layer == []
    assert any("no grouped layer is proposed" in note for note in notes)


def test_experts_without_a_router() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(SwiGlu() for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for block in self.blocks:
                x = x + block(x)
            return x

    spec, notes = proposed(Chain())
    assert spec.moe == []
    assert spec.layer == []
    assert any("no top-k choice was seen for the 3 experts in blocks" in note for note in notes)


def test_single_token_as_a_vector() -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ffn = SwiGlu()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.ffn(x[0])

    assert proposed(One())[0].measure[0].tokens == [1, 2]


def test_biases_and_other_activations_are_noted() -> None:
    _, notes = proposed(LoopMoe([SwiGlu(bias=True) for _ in range(E)]))
    assert "biases of experts are left out" in notes
    _, notes = proposed(LoopMoe([FusedGelu() for _ in range(E)]))
    assert any("gelu in experts is measured as SwiGLU" in note for note in notes)


def test_unknown_dtype_is_noted() -> None:
    spec, notes = proposed(LoopMoe([SwiGlu() for _ in range(E)]).double())
    assert only_class(spec)[3] == "bfloat16"
    assert any("weights of float64 have no kernel here" in note for note in notes)


def test_many_token_counts_are_thinned() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ffn = SwiGlu()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum((self.ffn(x[:n]).sum() for n in range(1, 41)), torch.zeros(()))

    spec, notes = proposed(Many(), tokens=40)
    tokens = spec.measure[0].tokens
    assert {1, 40} <= set(tokens)
    assert len(tokens) < 20
    assert any("40 token counts from 1 to 40 were seen" in note for note in notes)


def test_hooks_are_removed() -> None:
    def fail() -> None:
        SwiGlu()(torch.randn(1, D + 1))

    with pytest.raises(RuntimeError):
        trace_run(fail)
    assert not nn.modules.module._global_forward_pre_hooks
    assert not nn.modules.module._global_forward_hooks


MODELS = """
import torch
from torch import nn

class Ffn(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
    def forward(self, x, scale=1.0):
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return self.down(torch.relu(self.up(x))) * scale

def as_tuple(): return Ffn(), (torch.randn(3, 8),)
def as_dict(): return Ffn(), {"x": torch.randn(3, 8), "scale": 2.0}
def as_tensor(): return Ffn(), torch.randn(3, 8)
def as_call():
    model = Ffn().eval()
    return lambda: model(torch.randn(3, 8))
def nothing(): return None
def alone(): return Ffn()
def wrong(): return Ffn(), torch.randn(3, 9)
def raising(): raise ValueError("first line\\nsecond line")
def dense(): return nn.Linear(8, 8), torch.randn(3, 8)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "tiny_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    yield "tiny_models"
    sys.modules.pop("tiny_models", None)


@pytest.mark.parametrize("function", ["as_tuple", "as_dict", "as_tensor", "as_call"])
def test_targets(module: str, function: str) -> None:
    path_before = list(sys.path)
    spec, _ = spec_from_model(f"{module}:{function}")
    assert spec.name == function
    assert only_class(spec) == (8, 16, "relu", "float32")
    assert spec.measure[0].tokens == [2, 3, 4]
    assert sys.path == path_before


@pytest.mark.parametrize(
    ("function", "text"),
    [
        ("nothing", "returned NoneType; no sweep was proposed; return .model, inputs."),
        ("alone", "returned Ffn"),
        ("wrong", "running the model of tiny_models:wrong raised RuntimeError"),
        ("raising", "raised ValueError: first line second line; no sweep"),
        ("absent", "raised AttributeError"),
        ("dense", "no expert was recognised among the 1 modules that ran"),
    ],
)
def test_targets_that_cannot_be_used(module: str, function: str, text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        spec_from_model(f"{module}:{function}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["tiny_models", "a b:c", ":f", "m:", "m:f()"])
def test_malformed_targets(target: str) -> None:
    with pytest.raises(InputError, match="is not of the form module:function"):
        spec_from_model(target)


def test_missing_module() -> None:
    with pytest.raises(InputError, match="raised ModuleNotFoundError"):
        spec_from_model("no_such_module_here:f")
