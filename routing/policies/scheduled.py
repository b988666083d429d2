"""Parameters that follow what the machine is doing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from costprof.costmodel.table import CostTable
from costprof.routing.contract import Gate, Policy, Rows, Selection, Stage, SystemState


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduled:
    """G(x, s): the policy that `policy_for` makes of the system's state decides.

    So any parameter of any policy may depend on temperature, power or stage:

        Scheduled(policy_for=lambda state: Marginal(lam=0.1 if state.stage == "hot" else 0.02))

    or, by stage alone, `Scheduled.by_stage(cool=TopK(), hot=Marginal(lam=0.1))`. Policies of
    different classes each get the history they left. `route` reads the state on the host, so a
    CUDA graph holds the policy of the state it was captured in: capture one for each stage.

    Args:
        policy_for: From state to policy; a pure function.
    """

    policy_for: Callable[[SystemState], Policy]

    @classmethod
    def by_stage(
        cls,
        *,
        cool: Policy,
        warm: Policy | None = None,
        hot: Policy | None = None,
        critical: Policy | None = None,
    ) -> Scheduled:
        """Return a policy for each stage; one not given is that of the stage before."""
        policies: dict[Stage, Policy] = {"cool": cool}
        policies["warm"] = warm or policies["cool"]
        policies["hot"] = hot or policies["warm"]
        policies["critical"] = critical or policies["hot"]
        return cls(policy_for=lambda state: policies[state.stage])

    @classmethod
    def of(cls, policy: Callable[..., Policy], **parameters: Any) -> Scheduled:
        """Return `policy` with parameters that may be functions of the state.

        For example `Scheduled.of(OEA, k0=lambda state: 4 if state.stage == "cool" else 2)`.
        """

        def made(state: SystemState) -> Policy:
            return policy(
                **{
                    name: value(state) if callable(value) else value
                    for name, value in parameters.items()
                }
            )

        return cls(policy_for=made)

    @property
    def neutral(self) -> bool:
        """False: it takes a state to know. In a neutral state the choice is plain top-k's."""
        return False

    def choose(
        self,
        plain: Selection,
        *,
        table: CostTable,
        state: SystemState,
        rows: Rows,
        gate: Gate,
        history: Any,
    ) -> tuple[Selection, Any]:
        """Return what the policy of this `state` chooses.

        Raises:
            InputError: a parameter is outside its range in this state.
            TableError: as that policy says.
        """
        policy = self.policy_for(state)
        if policy.neutral:
            return plain, history
        histories = history if isinstance(history, Mapping) else {}
        name = type(policy).__name__
        chosen, after = policy.choose(
            plain, table=table, state=state, rows=rows, gate=gate, history=histories.get(name)
        )
        return chosen, {**histories, name: after}
