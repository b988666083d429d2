"""What the keys of validation figures are called where people read them."""

from __future__ import annotations

KIND_TITLES = {
    "interior": "inside the measured range",
    "end": "one step beyond it",
    "few-inside": "between 2 to 4 points",
    "few-end": "one step beyond 2 to 4 points",
    "single": "from one point",
}
METHOD_TITLES = {
    "model": "costprof",
    "roofline": "roofline alone",
    "linear": "linear in tokens",
    "mean_power_true_latency": "mean power x true latency",
    "sum_of_experts": "experts added up",
}
