"""`constrain`: keep tensors of a model inside constraint sets, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn
from torch.optim import Optimizer

from constrained.atomic.interrupts import defer_interrupts
from constrained.attached.attached_constraint import Mode, OnNonfinite
from constrained.constraint.errors import SpecError, raise_all
from constrained.constraint.spec import SETTINGS
from constrained.model.changes import Change, carry_out
from constrained.model.config import Rule
from constrained.model.plan import Plan
from constrained.model.prepare import prepare_all, rules_of
from constrained.model.start import Init
from constrained.model.targets import select
from constrained.registration.outside_owners import check_owners
from constrained.registration.param_groups import check_optimizer

M = TypeVar("M", bound=nn.Module)


def constrain(
    module: M,
    target: str | Mapping[str, Any] | Plan | object,
    constraint: Any = None,
    *,
    view: str | None = None,
    init: Init = "keep",
    mode: Mode = "parametrize",
    on_nonfinite: OnNonfinite = "raise",
    optimizer: Optimizer | None = None,
    **arguments: Any,
) -> M:
    """Keep tensors of a model inside constraint sets from now on.

    Any optimizer and any training loop work as before. A tensor is then computed from free
    parameters, under ``parametrizations.<name>`` of its module. Tied tensors stay tied. It is an
    error if a tensor is tied to one of a module outside of ``module``. After any error the model is
    as it was.

    Attributes of a parameter, such as ``_no_weight_decay``, are copied to each of the free
    parameters that it becomes. Its gradient is kept if the parameter keeps its shape, and dropped
    otherwise.

    A tensor of a lazy module, such as ``nn.LazyLinear``, is constrained as soon as it has its
    shape: on the first forward pass, or when a checkpoint is loaded. If the constraint does not fit
    that shape, the error is raised there.

    Args:
        module: the model.
        target: which tensors.

            - A tensor's name, or its dotted path.
            - A pattern over the paths of parameters: ``*`` stays inside one segment, ``**`` crosses
              them, ``?`` is one character, ``[seq]`` one of some, ``{q,k}_proj`` are alternatives,
              ``{0..3}`` numbers; ``type=nn.Linear.weight``, or ``Linear.weight``, are the weights
              of all modules of a type.
            - A config: a mapping from these to specs, as it comes out of YAML, JSON, TOML, Hydra or
              a dataclass. Nested mappings mean the same as dotted keys. A later pattern overrides
              an earlier one, and a path any pattern. None (``"none"`` in TOML) is an exception: it
              leaves its tensors unconstrained.
            - A `Plan`, which `plan` has made of any of these.
        constraint: a registered name, a spec string such as ``"low_rank(rank=8)"``, a mapping
            ``{"name": ..., <arguments>, "view": ..., "axes": ..., "init": ..., "where": ...}``, a
            class path ``"package.module:Class"`` of an imported module, a `Constraint` (copied for
            every tensor), any ``nn.Module`` with a ``forward``, or a list of these: a chain.
        view: how the tensor is seen as elements: an einops pattern, for example
            ``"o i h w -> o (i h w)"``; lengths of its axes may follow as keyword arguments, or in
            ``axes``. Or one of some names: ``"conv"`` (a kernel as the matrix of its filters),
            ``"gates"`` (the weight of each gate of an LSTM or a GRU), ``"heads(n)"`` and
            ``"qkv(n)"`` (the heads of attention).
        init: where each tensor starts. `report` shows how far it moved.

            - ``"keep"``: a member of the set stays as it is; an outsider goes to a member nearby
              from which it can be trained.
            - ``"inside"``: the same, but a member next to the boundary that an optimizer would
              hardly move is moved further inside. ``"keep"`` warns of such members.
            - ``"sample"``: at a random member.
            - ``"strict"``: where it is; an outsider is an error.

            `load_state_dict` has a similar choice for values of a checkpoint, ``on_infeasible``:
            ``"error"`` is ``"strict"``, and ``"project"`` takes the nearest member instead of one
            that trains well, since a loaded model shall compute what it did.
        mode: how the constraint is kept.

            - ``"parametrize"``: the tensor is computed from free parameters. Each read is a member.
            - ``"project"``: the tensor stays a plain ``nn.Parameter``, under its own key and in a
              class as it was. Each step of an optimizer makes the gradient tangent before, and
              brings the tensor back into its set afterwards. What is written in between may lie
              outside; `assert_feasible` tells, and the next step mends it. So may a mean of
              members, as ``AveragedModel`` makes it; ``load_state_dict(model, model.state_dict(),
              on_infeasible="project")`` brings it back.
            - ``"penalize"``: the tensor stays a plain parameter, and `penalty` gives a term for the
              loss which pulls it towards its set.
        on_nonfinite: what to do, with ``mode="project"``, about a gradient with NaN or infinity.
            ``"raise"``: the optimizer's step raises a `NonfiniteGradientError` before anything has
            changed. ``"skip"``: the tensor stays where it is for this step, and so does what the
            optimizer remembers of it; and it goes back if a step ends in NaN or infinity, for which
            a copy of it is kept. L-BFGS, whose memory is of all its tensors, leaves out the step of
            all. A ``GradScaler`` leaves out such steps by itself.
        optimizer: an optimizer that holds the tensors already: it is given the parameters that
            take their place. Without it, an optimizer that still holds a tensor which is no
            longer in the model warns at its next step.
        arguments: arguments of the constraint's constructor, and perhaps ``where``: which of the
            tensors that the target matches are taken. ``"all"``, the default: one that cannot carry
            the constraint is an error. ``"fits"``: those that can carry it. ``"matrices"``,
            ``"vectors"``: those of them with two dimensions, or one. `plan` lists what is skipped.

    Returns:
        ``module``, of the type that it has.

    Raises:
        ValueError: for a name, an argument, a target, a view or a shape that does not fit, for
            NaN or infinite values, for a tensor that a module outside of this one owns as well,
            for an optimizer that holds nothing of a tensor that is trained, and under
            ``init="strict"`` for a tensor outside the set (`InfeasibleError`). The message is one
            sentence that names the tensor by its path. Several errors are raised together, as a
            `ConfigErrors`.
        RuntimeError: if DistributedDataParallel or FSDP has wrapped the model already.

    Example:
        >>> import torch
        >>> from constrained import constrain
        >>> layer = constrain(torch.nn.Linear(4, 4), "weight", "orthogonal")
        >>> torch.allclose(layer.weight @ layer.weight.T, torch.eye(4), atol=1e-5)
        True
    """
    check_optimizer(optimizer)
    message = f"{type(module).__name__} cannot be constrained"
    if isinstance(target, Plan):
        given = (init, mode, on_nonfinite) != tuple(SETTINGS.values())
        if constraint is not None or view is not None or arguments or given:
            raise SpecError(
                "A plan holds the constraints with their settings; nothing but an "
                "optimizer may be given beside it."
            )
        raise_all(message, target.errors)
        rules, errors = dict(target.rules), list[Exception]()
    else:
        settings = {"init": init, "mode": mode, "on_nonfinite": on_nonfinite}
        rules, errors = rules_of(module, target, constraint, view, arguments, settings)
    with defer_interrupts():
        selection = select(module, rules, Rule.why_not)
        errors += selection.errors
        changes: list[Change] = []
        for _, found in prepare_all(selection, optimizer):
            if isinstance(found, Exception):
                errors.append(found)
            else:
                changes.append(found)
        raise_all(message, errors)
        held = ((change.places, len(change.tensors())) for change in changes)
        check_owners(module, held)
        carry_out(changes, optimizer)
    return module
