"""Laws about training: `constrained.constrain` keeps members; optimizer steps stay in the set."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from constrained.constraint.base import Constraint
from constrained.testing.bounds import expect_close, expect_member
from constrained.testing.case import Case, expect
from constrained.testing.derivative_laws import singular_values
from constrained.testing.one_tensor_model import constrained_model
from constrained.testing.points import params_at
from constrained.testing.runner import Scope, law

STEPS = 100
TO_ZERO = "Adam towards zero"

ONCE = Scope(dtypes=(torch.float32,), batches=((),))


@law()
def constrain_keeps_a_member(case: Case) -> None:
    """A parameter that lies in the set keeps its value when it is constrained."""
    constraint = case.build()
    inside = case.sample(constraint)
    module = constrained_model(case.build(), inside)
    expect_close(module.weight, inside, case, "the weight after constrain()")
    expect(
        len(list(module.parameters())) > 0 and module.weight.requires_grad,
        case,
        "constrain(): expected a weight that can be trained.",
    )


@law(Scope(dtypes=(torch.float32,), batches=((),), one_shape=True, effort="long"))
def training_stays_in_the_set(case: Case) -> None:
    """100 steps of SGD, Adam and AdamW with weight decay stay in the set and lower the loss.

    100 large steps of Adam towards zero stay in the set too. Values there may be small although
    they are computed from large numbers. Whether the loss can fall there depends on the set.
    """
    constraint = case.build()
    free = params_at(case, constraint, "random")
    # Learning rates: a tenth of the inverse curvature of the loss for gradient descent; a hundredth
    # of a typical parameter for the optimizers whose steps have the size of the learning rate.
    steepest = float(singular_values(case, constraint, "random").amax())
    entries = torch.cat([p.abs().flatten() for p in free]).double()
    typical = float(entries.square().mean().sqrt()) or 1.0
    rate = 1e-2 * typical
    makers: dict[str, Callable[[Iterator[torch.nn.Parameter]], torch.optim.Optimizer]] = {
        "SGD": lambda free: torch.optim.SGD(free, lr=0.1 / max(steepest**2, 1e-6)),
        "Adam": lambda free: torch.optim.Adam(free, lr=rate),
        "AdamW": lambda free: torch.optim.AdamW(free, lr=rate, weight_decay=0.1),
        TO_ZERO: lambda free: torch.optim.Adam(free, lr=10 * rate),
    }
    for kind, make in makers.items():
        # Each optimizer gets another start and target, since a success with one may be luck.
        target = case.sample(constraint, f"target of {kind}")
        if kind == TO_ZERO:
            target = torch.zeros_like(target)
        module = constrained_model(case.build(), case.sample(constraint, f"start of {kind}"))
        optimizer = make(module.parameters())
        losses: list[float] = []
        values: list[Tensor] = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            value = module()
            loss = (value - target).abs().square().sum() / 2
            loss.backward()
            losses.append(float(loss.detach()))
            values.append(value.detach().clone())
            optimizer.step()
        values.append(module.weight.detach())
        _expect_members(values, case, constraint, f"the weight in {STEPS} steps of {kind}")
        expect(
            losses[-1] < losses[0] or kind == TO_ZERO or constraint.dimension(case.event) == 0,
            case,
            f"{kind}: expected {STEPS} steps to lower the loss, "
            f"found {losses[0]:.6g} before and {losses[-1]:.6g} after.",
        )


def _expect_members(values: list[Tensor], case: Case, constraint: Constraint, what: str) -> None:
    """Raise unless all values are finite members; they are checked as one batch if possible."""
    expect(
        all(bool(torch.isfinite(value).all()) for value in values),
        case,
        f"{what}: expected finite values.",
    )
    if constraint.event_dim is None:
        for value in values:
            expect_member(value, case, constraint, what)
    else:
        batch = dataclasses.replace(case, batch=(len(values), *case.batch))
        expect_member(torch.stack(values), batch, constraint, what)


@law(ONCE)
def checkpoints_restore(case: Case) -> None:
    """The state dict and the pickle of a constrained module restore its weight bit for bit."""
    constraint = case.build()
    module = constrained_model(case.build(), case.sample(constraint))
    twin = constrained_model(case.build(), case.sample(constraint, "other"))
    twin.load_state_dict(module.state_dict(), strict=True)
    expect(
        torch.equal(twin.weight, module.weight),
        case,
        "state_dict of a constrained module: expected the same weight after loading it.",
    )
    twin = pickle.loads(pickle.dumps(module))
    expect(
        torch.equal(twin.weight, module.weight),
        case,
        "pickle of a constrained module: expected the same weight after loading it.",
    )
