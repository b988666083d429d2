"""`costprof route` end to end on a small table, and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Run, runner
from safetensors.torch import save_file

from costprof.core.device import DeviceFingerprint, detect_device, software_versions
from costprof.core.expert import ExpertClass, Kernel
from costprof.costmodel.compatibility import TableDriftWarning
from costprof.costmodel.manifest import Manifest, MoeSpec
from costprof.costmodel.rows import TableRow, rows_table
from costprof.costmodel.table import CostTable, write_table
from costprof.routing import OEA, POLICIES, CachePrior, Gate, Marginal, Rows, TopK, route


def make_table(path: Path, d_model: int = 64, d_ff: int = 64, device: str = "") -> Path:
    dense = ExpertClass(d_model=d_model, d_ff=d_ff, dtype="float32")
    packed = ExpertClass(d_model=d_model, d_ff=d_ff, dtype="float32", quantisation="int4")
    rows = [
        TableRow(
            expert=expert,
            kernel=Kernel(name="kernels:expert"),
            tokens=tokens,
            latency_us=(100.0 + tokens,) * 3,
            energy_mj=(2.0 + tokens,) * 3,
            power_w=20.0,
            temp_rise_c=0.1,
        )
        for expert in (dense, packed)
        for tokens in (1, 4, 16)
    ]
    fingerprint = detect_device("cpu")
    if device:
        fingerprint = DeviceFingerprint(kind="cpu", name=device)
    moe = MoeSpec(name="small", top_k=4, class_of_expert=(rows[0].class_id, rows[-1].class_id) * 8)
    write_table(
        path,
        rows_table(rows),
        Manifest(device=fingerprint, software=software_versions(), moes=(moe,)),
    )
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_table(tmp_path_factory.mktemp("route") / "t.parquet")


@pytest.fixture
def costprof(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Return a runner of `costprof route`."""
    return runner(monkeypatch, capfd, "route")


def test_json_holds_predictions_and_measurements_of_all_variants(
    costprof: Run, table: Path
) -> None:
    done = costprof(
        table, "--json", "--batches", "2", "--repeats", "2", "--tokens", "4", "--threads", "1"
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    variants = {row["name"]: row for row in result["variants"]}
    assert list(variants) == ["top-k", "marginal", "top-k + adapted", "marginal + adapted"]
    plain, marginal = variants["top-k"], variants["marginal"]
    assert plain["gate_mass_lost"] == 0
    assert plain["output_difference"] == 0
    assert 0 < marginal["gate_mass_lost"] <= 0.3
    assert marginal["active_experts"] < plain["active_experts"]
    assert marginal["predicted_latency_us"] < plain["predicted_latency_us"]
    assert marginal["output_difference"] > 0
    assert plain["measured_ratio"]["median"] == 1
    for row in variants.values():
        spread = row["measured_layer_us"]
        assert 0 < spread["p25"] <= spread["median"] <= spread["p75"]
        assert spread["n"] == 4
        assert row["measured_routing_us"] > 0
        assert (row["measured_adapt_us"] is None) is not row["adapted"]
    assert result["adaptation"]["updates"] == 2
    assert result["adaptation"]["charged_us"] > 0
    assert result["energy_sources"] == ["modelled"]
    assert result["threads"] == 1
    assert "timing" in done.stderr


def test_the_table_says_what_is_predicted_modelled_and_measured(costprof: Run, table: Path) -> None:
    done = costprof(table, "--batches", "1", "--repeats", "1", "--tokens", "2")
    assert done.returncode == 0, done.stderr
    for words in ("predicted", "(modelled)", "measured", "routing", "+ adapted", "gate mass"):
        assert words in done.stdout
    assert "Measured on" in done.stdout


def test_without_measuring_or_adapting_nothing_is_run(costprof: Run, table: Path) -> None:
    done = costprof(table, "--json", "--no-measure", "--no-adapt")
    result = json.loads(done.stdout)
    assert [row["name"] for row in result["variants"]] == ["top-k", "marginal"]
    assert "measured_layer_us" not in result["variants"][0]
    assert result["adaptation"] is None
    assert result["measured_device"] is None
    again = json.loads(costprof(table, "--json", "--no-measure", "--no-adapt").stdout)
    assert again == result


def test_a_layer_larger_than_memory_is_refused_before_it_is_built(
    costprof: Run, tmp_path: Path
) -> None:
    huge = make_table(tmp_path / "huge.parquet", d_model=2**17, d_ff=2**17)
    done = costprof(huge, "--tokens", "1", "--batches", "1", "--no-adapt")
    assert done.returncode == 2
    assert "GiB of memory are free; nothing was run; use --no-measure" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "-4"), "--tokens is -4; nothing was routed; give a whole number of at"),
        (("--batches", "0"), "--batches is 0; nothing was routed"),
        (("--repeats", "0"), "--repeats is 0; nothing was routed"),
        (("--threads", "0"), "--threads is 0; nothing was routed"),
        (("--policy", "best"), "policy 'best' is unknown; nothing was routed; use topk, fewer"),
        (("--q", "1.5"), "q is 1.5; the policy cannot be built; use 0 … 1"),
        (("--q", "nan"), "q is nan; the policy cannot be built; use 0 … 1"),
        (("--lam", "-1"), "lam is -1.0; the policy cannot be built; use at least 0"),
        (("--budget", "2"), "budget is 2.0; the policy cannot be built; use 0 … 1"),
        (
            ("--objective", "speed"),
            "an objective has no weight 'speed'; the policy cannot be built",
        ),
        (
            ("--policy", "oea", "--q", "0.5"),
            "--set q=0.5: policy oea has no such parameter; nothing",
        ),
        (("--set", "nothing"), "--set nothing: policy marginal has no such parameter"),
        (("--policy", "oea", "--set", "k0=two"), "--set k0=two cannot be read; nothing was routed"),
        (("--policy", "oea", "--set", "k0=0"), "k0 is 0; the policy cannot be built; use a whole"),
        (("--policy", "prune", "--set", "off=a"), "list expert numbers, as 0,3,5"),
        (("--policy", "tile_round", "--set", "prefill=1"), "use true or false"),
        (("--policy", "oea", "--objective", "energy"), "policy oea has no such parameter"),
        (("--policy", "tile_round", "--set", "objective.speed=1"), "has no weight 'speed'"),
        (
            ("--policy", "static_optimal", "--set", "kept=0,1,2,3", "--set", "mass_lost=0.1"),
            "static_optimal has its experts named, and mass_lost to choose them by",
        ),
        (("--trace", "none.npz"), "none.npz is no file; no trace was read; name a recorded trace"),
        (("--skew", "-1"), "skew is -1.0; no batch was made"),
        (
            ("--skew", "1e308"),
            "skew is 1e+308; no batch was made; use skew and spread in 0 … 100",
        ),
        (("--tokens", "9" * 23), " rows; nothing was routed; ask for at most 1048576 rows"),
        (("--tokens", "1000000"), "8 made-up batches of 1000000 tokens are 8000000 rows; nothing"),
        (("--batches", "9" * 11), "; nothing was routed; ask for at most 1048576 rows"),
        (("--gate", "k=1"), "--gate k=1 cannot be read; nothing was routed; set one of score, "),
        (("--gate", "renormalise=1"), "--gate renormalise=1 cannot be read; nothing was routed"),
        (("--gate", "bias=1"), "--gate bias=1 cannot be read; nothing was routed"),
        (("--gate", "score=relu"), "score 'relu' is unknown; the gate cannot be built"),
        (("--gate", "n_group=3"), "16 experts in 3 groups"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    costprof: Run, table: Path, arguments: tuple[str, str], message: str
) -> None:
    done = costprof(table, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("costprof: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_tables_that_cannot_be_used_are_named(costprof: Run, table: Path, tmp_path: Path) -> None:
    missing = costprof(tmp_path / "none.parquet")
    assert (missing.returncode, missing.stderr.count("\n")) == (6, 1)
    unknown = costprof(table, "--moe", "other")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (6, 1)
    other = make_table(tmp_path / "other.parquet", device="Another CPU")
    refused = costprof(other)
    assert (refused.returncode, refused.stderr.count("\n")) == (7, 1)
    allowed = costprof(other, "--allow-device-mismatch", "--no-measure", "--json")
    assert json.loads(allowed.stdout)["table_device"] == "Another CPU"


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_compared_with_top_k(costprof: Run, table: Path, policy: str) -> None:
    done = costprof(table, "--policy", policy, "--json", "--no-measure", "--no-adapt")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    plain, other = result["variants"]
    assert (plain["name"], other["name"]) == ("top-k", policy)
    # What it does where nothing is set is not nothing; but the experts of this table cost the same.
    assert (other["gate_mass_lost"] > 0) is (policy not in ("topk", "cost_bias"))
    assert result["policy"] == policy


@pytest.mark.parametrize(
    ("policy", "settings", "parameters"),
    [
        ("oea", ["k0=1"], {"k0": 1}),
        ("prune", ["off=0,3", "share=0"], {"off": [0, 3], "share": 0.0, "decay": 0.9}),
        ("static_optimal", ["kept=1,2,3,4,5"], {"kept": [1, 2, 3, 4, 5]}),
        (
            "tile_round",
            ["block_m=2", "prefill=true", "objective.energy=2", "objective.memory=1"],
            {
                "block_m": 2,
                "q": 0.9,
                "prefill": True,
                "objective": {
                    "latency": 0.0,
                    "energy": 2.0,
                    "thermal": 0.0,
                    "memory": 1.0,
                    "balance": 0.0,
                },
            },
        ),
        (
            "marginal",
            ["objective=memory", "objective.latency=0.5"],
            {
                "lam": 0.02,
                "budget": 1.0,
                "q": 0.7,
                "prefill": False,
                "objective": {
                    "latency": 0.5,
                    "energy": 0.0,
                    "thermal": 0.0,
                    "memory": 1.0,
                    "balance": 0.0,
                },
            },
        ),
    ],
)
def test_parameters_are_set_by_name(
    costprof: Run, table: Path, policy: str, settings: list[str], parameters: dict[str, Any]
) -> None:
    given = [part for setting in settings for part in ("--set", setting)]
    done = costprof(table, "--policy", policy, *given, "--json", "--no-measure", "--no-adapt")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parameters"] == parameters


def test_a_trace_is_replayed_with_its_padding_and_prompts(
    costprof: Run, table: Path, tmp_path: Path
) -> None:
    logits = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0)) * 2
    real = torch.ones(3, 6, dtype=torch.bool)
    real[1, 4:] = False
    prompt = torch.zeros(3, 6, dtype=torch.bool)
    prompt[2] = True
    trace = tmp_path / "t.safetensors"
    save_file({"logits": logits, "real": real, "is_prefill": prompt}, trace)
    done = costprof(table, "--trace", trace, "--policy", "oea", "--set", "k0=1", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    prices = CostTable.load(table)
    found = [
        route(
            logits[step],
            table=prices,
            gate=Gate(top_k=4),
            policy=OEA(k0=1),
            rows=Rows(
                real=real[step],
                sequence=torch.arange(6),
                position=torch.zeros(6, dtype=torch.int64),
                is_prefill=prompt[step],
            ),
        )
        for step in range(3)
    ]
    plain, oea = result["variants"]
    active = [int(each.counts.count_nonzero()) for each in found]
    assert oea["active_experts"] == pytest.approx(sum(active) / 3)
    assert oea["active_experts"] < plain["active_experts"]
    lost = [float(each.gate_mass_lost[real[s]].mean()) for s, each in enumerate(found)]
    assert oea["gate_mass_lost"] == pytest.approx(sum(lost) / 3, abs=1e-6)
    assert (result["tokens"], result["batches"], result["measured_device"]) == (6, 3, None)
    assert "were made up" not in done.stdout
    other = tmp_path / "other.npz"
    np.savez(other, logits=np.zeros((4, 5), dtype=np.float32))
    refused = costprof(table, "--trace", other)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "has logits of 5 experts, the table prices 16; nothing was routed" in refused.stderr


def test_a_token_is_explained(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    table: Path,
    tmp_path: Path,
) -> None:
    explain = runner(monkeypatch, capfd, "explain")
    done = explain(table, "--policy", "oea", "--set", "k0=1", "--token", "3")
    assert done.returncode == 0, done.stderr
    for words in ("token 3 of a made-up batch (decode)", "dropped", "gave up", "active experts"):
        assert words in done.stdout
    logits = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0)) * 2
    trace = tmp_path / "t.npz"
    np.savez(trace, logits=logits.numpy())
    options = ("--policy", "cache_prior", "--trace", trace, "--step", "1", "--token", "2")
    found = json.loads(explain(table, *options, "--json").stdout)
    prices, policy = CostTable.load(table), CachePrior(lam=0.2)
    common: dict[str, Any] = {"table": prices, "gate": Gate(top_k=4), "policy": policy}
    history = route(logits[0], **common).history
    got = route(logits[1], **common, history=history)
    taken = {each["expert"] for each in found["experts"] if each["weight"] > 0}
    assert taken == set(got.indices[2].tolist())
    assert found["latency_us"] == pytest.approx(float(got.predicted.latency_us))
    for wrong in (("--step", "100000000", "--tokens", "1"), ("--tokens", "9" * 23)):
        refused = explain(table, *wrong)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
        assert "rows; nothing was routed; ask for at most 1048576 rows" in refused.stderr
    for wrong, message in (
        (("--token", "6"), "row 6 of 6; nothing was explained"),
        (("--step", "2"), "step 2 of 2; nothing was explained; use 0 … 1"),
        (("--step", "-1"), "--step is -1; nothing was explained"),
        (("--seed", "9" * 23), "nothing was explained; use 0 … 2^63 - 1"),
        (("--gate", "k=1"), "--gate k=1 cannot be read"),
    ):
        refused = explain(table, "--trace", trace, *wrong)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert message in refused.stderr


def test_padding_decides_nothing_of_what_is_left_open(
    costprof: Run, table: Path, tmp_path: Path
) -> None:
    logits = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0)) * 2
    junk = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(1)) * 2
    real = (torch.arange(20) < 8).expand(3, 20).contiguous()
    traces = {
        "plain": {"logits": logits},
        "padded": {"logits": torch.cat([logits, junk], 1), "real": real},
        "nan": {"logits": torch.cat([logits, junk * torch.nan], 1), "real": real},
    }
    for policy in ("budget", "static_optimal"):
        found = []
        for name, tensors in traces.items():
            trace = tmp_path / f"{name}.safetensors"
            save_file(tensors, trace)
            done = costprof(table, "--trace", trace, "--policy", policy, "--json")
            assert done.returncode == 0, done.stderr
            result = json.loads(done.stdout)
            found.append((result["parameters"], result["variants"][1]["gate_mass_lost"]))
        assert found[0] == found[1] == found[2]


@pytest.fixture
def deepseek(costprof: Run) -> Run:
    """Return a runner of `costprof route --moe DeepSeek-V3`, on shipped predictions."""
    return lambda *arguments: costprof("--moe", "DeepSeek-V3", "--json", *arguments)


def test_a_trace_brings_its_gate(deepseek: Run, tmp_path: Path) -> None:
    """DeepSeek-V3 chooses by sigmoids plus a bias, in groups: no softmax has its experts."""
    logits = torch.randn(2, 32, 256, generator=torch.Generator().manual_seed(0))
    bias = torch.randn(256, generator=torch.Generator().manual_seed(1)) * 0.1
    gate = Gate(top_k=8, score="sigmoid", bias=bias, n_group=8, topk_group=4, scaling=2.5)
    trace = tmp_path / "t.safetensors"
    save_file({"logits": logits, "gate.bias": bias}, trace)
    done = deepseek("--trace", trace)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    plain, marginal = result["variants"]
    with pytest.warns(TableDriftWarning):
        prices = CostTable.shipped("DeepSeek-V3")
    for variant, policy in ((plain, TopK()), (marginal, Marginal(lam=0.02))):
        got = [route(each, table=prices, gate=gate, policy=policy) for each in logits]
        active = sum(int(each.counts.count_nonzero()) for each in got) / 2
        assert variant["active_experts"] == pytest.approx(active)
        lost = sum(float(each.gate_mass_lost.mean()) for each in got) / 2
        assert variant["gate_mass_lost"] == pytest.approx(lost)
    assert result["gate"] == {
        "score": "sigmoid",
        "renormalise": True,
        "scaling": 2.5,
        "n_group": 8,
        "topk_group": 4,
        "group_top": 2,
        "biased": True,
    }
    # What the trace says goes before the model, and --gate before both.
    save_file({"logits": logits, "gate.bias": bias, "gate.n_group": torch.tensor(16)}, trace)
    said = json.loads(deepseek("--trace", trace, "--gate", "topk_group=5").stdout)["gate"]
    assert (said["n_group"], said["topk_group"]) == (16, 5)


def test_a_biased_gate_is_not_made_up_for_a_trace(deepseek: Run, tmp_path: Path) -> None:
    trace = tmp_path / "t.npz"
    np.savez(trace, logits=np.zeros((4, 256), dtype=np.float32))
    refused = deepseek("--trace", trace)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "DeepSeek-V3 chooses experts by scores plus a bias, and the trace has" in refused.stderr
    assert "record it as gate.bias [256]" in refused.stderr
    save = {"logits": np.zeros((4, 256), dtype=np.float32), "gate.top_k": np.int64(6)}
    np.savez(trace, **save)
    refused = deepseek("--trace", trace)
    assert "the trace is of a top-6 gate, the table of a top-8 one; nothing" in refused.stderr


@pytest.mark.parametrize(
    ("moe", "gate"),
    [
        ("DeepSeek-V3", {"score": "sigmoid", "n_group": 8, "topk_group": 4, "renormalise": True}),
        ("OLMoE-1B-7B", {"score": "softmax", "n_group": 1, "renormalise": False}),
        ("Mixtral-8x7B", {"score": "softmax", "n_group": 1, "renormalise": True}),
    ],
)
def test_made_up_batches_are_routed_as_the_model_would(
    costprof: Run, moe: str, gate: dict[str, Any]
) -> None:
    done = costprof("--moe", moe, "--no-adapt", "--batches", "1", "--tokens", "4", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert gate.items() <= said["gate"].items()
    assert any(f"{gate['score']} gate" in note for note in said["notes"])
