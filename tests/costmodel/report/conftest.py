"""Frames of held-out layers whose errors were planted, and a reader of pages."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

VOID = {"meta", "br", "hr", "img", "link", "input"}
LIMIT_W = 700.0


def make_frame(
    shapes: tuple[tuple[int, int, int, int], ...] = ((2048, 768, 8, 128), (4096, 1536, 2, 8)),
    tokens: tuple[int, ...] = (1, 4, 16, 64, 256, 1024),
    tp_sizes: tuple[int, ...] = (1, 2, 4),
    factor: float = 1.1,
) -> pa.Table:
    """Return layers predicted `factor` too slow, with intervals of ±20 % of the logarithm.

    Latency is 10 µs + flops / 400 TFLOP/s + bytes / 4 TB/s; power is at the limit from 256 tokens
    on, else half of it; energies of single tokens are not trusted. The linear baseline is 30 % too
    slow, and says nothing of the largest token count.
    """
    rows: list[dict[str, Any]] = []
    for hidden, inner, top_k, experts in shapes:
        for precision in ("bfloat16", "fp8"):
            for tp in tp_sizes:
                for distribution in ("balanced", "power_law_1.2"):
                    for count in tokens:
                        flops = 6.0 * count * top_k * hidden * inner / tp
                        active = min(count * top_k, experts)
                        size = active * 3.0 * hidden * inner / tp * (1 + (precision != "fp8"))
                        latency = 10.0 + flops / 400e6 + size / 4e6
                        power = LIMIT_W if count >= 256 else LIMIT_W / 2
                        energy = power * latency * 1e-3
                        rows.append(
                            {
                                "split": "token",
                                "kernel": "vllm:fused_moe",
                                "framework": "vllm 0.22.0",
                                "precision": precision,
                                "shape": f"{hidden}|{inner}|{top_k}|{experts}",
                                "hidden": hidden,
                                "inner": inner // tp,
                                "top_k": top_k,
                                "experts": experts,
                                "ep_size": 1,
                                "tp_size": tp,
                                "distribution": distribution,
                                "tokens": count,
                                "latency_us": latency,
                                "latency_us_p05": latency * factor * np.exp(-0.2),
                                "latency_us_p50": latency * factor,
                                "latency_us_p95": latency * factor * np.exp(0.2),
                                "linear_us": None if count == tokens[-1] else 1.3 * latency,
                                "analytic_us": 1.5 * latency,
                                "roofline_us": 0.5 * latency,
                                "boosting_us": 1.2 * latency,
                                "energy_mj": energy,
                                "energy_trusted": count > 1,
                                "energy_mj_p05": 0.9 * energy,
                                "energy_mj_p50": 1.05 * energy,
                                "energy_mj_p95": 1.2 * energy,
                                "linear_mj": None,
                                "constant_tdp_mj": LIMIT_W * latency * 1e-3,
                                "power_w": power,
                                "power_w_p50": power,
                                "power_limit_w": LIMIT_W,
                                "power_capped": count >= 256,
                                "tier": "interpolated",
                                "flops": flops,
                                "bytes": size,
                            }
                        )
    return pa.Table.from_pylist(rows)


@pytest.fixture(scope="session")
def layer_frame() -> Callable[..., pa.Table]:
    """The maker of frames."""
    return make_frame


class Page(HTMLParser):
    """A page as its elements: checks that they nest, and keeps attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data.strip()))

    def said(self, tag: str) -> list[str]:
        """Return the texts directly inside elements of `tag`."""
        return [text for inside, text in self.texts if inside == tag]


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    """The reader of pages."""
    return Page
