"""Recorded router logits, read from both formats, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from costprof.core.errors import InputError
from costprof.routing import Gate, Rows
from costprof.runtime.trace import load_trace, write_trace

S, T, E = 3, 5, 8


def save(path: Path, **tensors: torch.Tensor) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in tensors.items()})
    else:
        save_file(tensors, path)
    return path


@pytest.fixture(params=["t.safetensors", "t.npz"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_both_formats_hold_the_same(path: Path) -> None:
    logits = torch.randn(S, T, E, generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[True] * T, [True] * 3 + [False] * 2, [True] * T])
    logits[1, 4] = torch.nan  # padding
    described = {
        "real": real,
        "sequence": torch.arange(S * T, dtype=torch.int32).reshape(S, T) % 4,
        "position": torch.arange(S * T).reshape(S, T),
        "is_prefill": ~real,
    }
    got = load_trace(save(path, logits=logits, **described))
    assert len(got.logits) == len(got.rows) == S
    for step in range(S):
        assert torch.equal(got.logits[step].nan_to_num(7), logits[step].nan_to_num(7))
        for name, value in described.items():
            assert torch.equal(getattr(got.rows[step], name).long(), value[step].long())


def test_one_batch_without_description_is_a_decode_step(path: Path) -> None:
    logits = torch.randn(T, E, generator=torch.Generator().manual_seed(0)).half()
    got = load_trace(save(path, logits=logits))
    (batch,), (rows,) = got.logits, got.rows
    assert torch.equal(batch, logits.float())
    assert rows.lone_decode().all()


def test_one_batch_may_be_described_by_single_rows(path: Path) -> None:
    real = torch.tensor([True, True, True, True, False])
    got = load_trace(save(path, logits=torch.zeros(T, E), real=real))
    assert torch.equal(got.rows[0].real, real)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"other": torch.zeros(1)}, r"logits of .* are no tensor; no trace was read; record float"),
        ({"logits": torch.zeros(E)}, r"logits of .* are torch.float32 \[8\]; .*"),
        ({"logits": torch.zeros(T, E).long()}, r"logits of .* are torch.int64 .*"),
        ({"logits": torch.zeros(0, E)}, r"logits of .* are empty; .*"),
        (
            {"logits": torch.zeros(T, E), "real": torch.ones(T)},
            r"real of .* is torch.float32 \[5\]; no trace was read; record bool \[1, 5\], one",
        ),
        (
            {"logits": torch.zeros(S, T, E), "sequence": torch.zeros(T).long()},
            r"sequence of .* is torch.int64 \[5\]; .*; record int64 \[3, 5\]",
        ),
        (
            {"logits": torch.full((T, E), torch.inf)},
            r"logits of real rows of .* are not all finite; .*mark padding in `real`",
        ),
        (
            {"logits": torch.zeros(T, E), "gate.bias": torch.zeros(T)},
            r"gate.bias of .* is torch.float32 \[5\]; no trace was read; .* gate.bias \[8\]",
        ),
        (
            {"logits": torch.zeros(T, E), "gate.bias": torch.full((E,), torch.nan)},
            r"gate.bias of .* is torch.float32 \[8\], not all finite; no trace was read",
        ),
        (
            {"logits": torch.zeros(T, E), "gate.n_group": torch.tensor(2.0)},
            r"gate.n_group of .* is torch.float32 \[\]; .* n_group \(int\)",
        ),
        ({"logits": torch.zeros(T, E), "gate.k": torch.tensor(2)}, r"gate.k of .* is torch.int64"),
    ],
)
def test_what_is_no_trace_is_refused(path: Path, tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_trace(save(path, **tensors))


def test_other_files_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is neither .safetensors nor .npz; "):
        load_trace(tmp_path / "t.pt")
    with pytest.raises(InputError, match=r"is no file; no trace was read; name a recorded"):
        load_trace(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"cannot be read: .*; no trace was read; record it again"):
        load_trace(path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, logits=np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="cannot be read"):
        load_trace(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(tokens, E, generator=generator).to(dtype) for tokens in (3, 5, 1)]
    rows = [
        Rows(
            real=torch.arange(len(each)) != 1,
            sequence=torch.arange(len(each)) + 7,
            position=torch.full((len(each),), 9),
            is_prefill=torch.arange(len(each)) == 0,
        )
        for each in logits
    ]
    bias = torch.randn(E, generator=generator)
    gate = Gate(top_k=2, score="sigmoid", bias=bias, n_group=4, topk_group=2, scaling=2.5)
    write_trace(path, logits, rows=rows, gate=gate)
    got = load_trace(path)
    for step, (want, known) in enumerate(zip(logits, rows, strict=True)):
        n = len(want)
        assert torch.equal(got.logits[step][:n], want.float())
        assert not got.rows[step].real[n:].any()
        for name in ("real", "sequence", "position", "is_prefill"):
            assert torch.equal(getattr(got.rows[step], name)[:n], getattr(known, name))
    again = Gate(**got.gate)
    assert again.bias is not None
    assert torch.equal(again.bias, bias)
    for name in ("top_k", "score", "renormalise", "n_group", "topk_group", "group_top", "scaling"):
        assert getattr(again, name) == getattr(gate, name)


def test_nothing_is_said_that_was_not_given(path: Path) -> None:
    write_trace(path, [torch.zeros(T, E)])
    got = load_trace(path)
    assert got.gate == {}
    assert got.rows[0].lone_decode().all()


def test_what_is_no_trace_is_not_written(path: Path, tmp_path: Path) -> None:
    for logits, rows in (
        ([], None),
        ([torch.zeros(2, E), torch.zeros(2, E + 1)], None),
        ([torch.zeros(2, E)], [Rows.decode(3)]),
        ([torch.zeros(2, E)], [Rows.decode(2)] * 2),
    ):
        with pytest.raises(InputError, match="no trace was written; give"):
            write_trace(path, logits, rows=rows)
    with pytest.raises(InputError, match="not all finite"):
        write_trace(path, [torch.full((2, E), torch.nan)])
    with pytest.raises(InputError, match=r"is neither .* no trace was written"):
        write_trace(tmp_path / "t.pt", [torch.zeros(2, E)])
    assert not path.exists()
