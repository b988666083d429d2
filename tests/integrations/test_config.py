"""Policies as a server's JSON file names them."""

from __future__ import annotations

import pytest

from costprof.core.errors import InputError
from costprof.routing import Marginal, Objective
from costprof.runtime.integrations.config import policy_named


def test_unknown_policies_and_parameters_are_refused() -> None:
    with pytest.raises(InputError, match="there is no policy 'cheapest'"):
        policy_named("cheapest", {})
    with pytest.raises(InputError, match="policy marginal does not take these parameters"):
        policy_named("marginal", {"lambda": 1.0})
    with pytest.raises(InputError, match=r"objective 'energy' is no object of weights; .*; write"):
        policy_named("marginal", {"objective": "energy"})
    with pytest.raises(InputError, match=r"the parameters \['lam'\] are no object of names"):
        policy_named("marginal", ["lam"])  # type: ignore[arg-type]


def test_an_objective_is_written_as_its_weights() -> None:
    read = policy_named("marginal", {"objective": {"memory": 1, "energy": 3}})
    assert read == Marginal(objective=Objective(latency=0, memory=1, energy=3))
