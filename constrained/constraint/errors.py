"""The types of error that are raised about values, and about how constraints are written down."""

from __future__ import annotations

from collections.abc import Sequence


class InfeasibleError(ValueError):
    """A value does not lie in the set of a constraint."""


class OutOfRangeError(ValueError):
    """Finite numbers are so large or small for their dtype that an algorithm fails on them."""


class NonfiniteGradientError(ValueError):
    """The gradient of a tensor with ``mode="project"`` holds NaN or infinity.

    A step of an optimizer raises it before any tensor of the optimizer has changed, unless the
    tensor has ``on_nonfinite="skip"``.

    Example:
        >>> import torch, constrained
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> layer = constrained.constrain(layer, "weight", "orthogonal", mode="project")
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> layer.weight.grad = torch.full((2, 2), float("nan"))
        >>> try:
        ...     optimizer.step()
        ... except constrained.NonfiniteGradientError as error:
        ...     print("weight" in str(error))
        True
    """


class SpecError(TypeError, ValueError):
    """A spec is not valid: its syntax, its arguments or their types are wrong.

    Example:
        >>> from constrained import SpecError, constrain
        >>> from torch import nn
        >>> try:
        ...     constrain(nn.Linear(2, 2), "weight", "low_rank(rnak=1)")
        ... except SpecError as error:
        ...     print(str(error).partition(" low_rank takes")[0])
        'weight': low_rank has no argument 'rnak'. Did you mean 'rank'?
    """


class UnknownNameError(KeyError, ValueError):
    """No constraint is registered under a name.

    Example:
        >>> from constrained import UnknownNameError, get
        >>> try:
        ...     get("orthogonl")
        ... except UnknownNameError as error:
        ...     print(str(error).partition(" constrained.names()")[0])
        Unknown constraint 'orthogonl'. Did you mean 'orthogonal'?
    """

    def __str__(self) -> str:
        # KeyError would show the repr of the sentence, which has quotes around it.
        return str(self.args[0])


class ConfigErrors(ExceptionGroup[Exception], ValueError):
    """All that is wrong with a config: an exception group, whose text is a list of sentences.

    Example:
        >>> from constrained import ConfigErrors, constrain
        >>> from torch import nn
        >>> try:
        ...     constrain(nn.Linear(2, 2), {"weight": "orthogonl", "bais": "sphere"})
        ... except ConfigErrors as errors:
        ...     print(len(errors.exceptions))
        2
    """

    #: The most sentences in the text.
    MOST = 20

    def derive(self, excs: Sequence[Exception], /) -> ConfigErrors:  # pyright: ignore[reportIncompatibleMethodOverride] - all of these are exceptions
        """A group of some of the errors, as `split` and ``except*`` make them."""
        return ConfigErrors(self.message, excs)

    def __str__(self) -> str:
        sentences = grouped(self.exceptions)
        lines = [f"  - {sentence}" for sentence in sentences[: self.MOST]]
        if len(sentences) > self.MOST:
            lines.append(f"  - and {len(sentences) - self.MOST} more.")
        return "\n".join([f"{self.message}: {len(self.exceptions)} errors.", *lines])


def raise_all(message: str, errors: Sequence[Exception]) -> None:
    """Raise the only one of the errors, or a `ConfigErrors` of several; nothing if there is none.

    An error of another kind, such as a RuntimeError since the model is wrapped, is raised alone: it
    does not tell what is wrong with the config.

    Args:
        message: what was wrong, without a full stop.
        errors: the errors.
    """
    others = [error for error in errors if not isinstance(error, (ValueError, TypeError))]
    if others or len(errors) == 1:
        raise [*others, *errors][0]
    if errors:
        raise ConfigErrors(message, errors) from None


def grouped(errors: Sequence[Exception]) -> list[str]:
    """The sentences of errors; those that differ in the path of the tensor alone are one."""
    paths: dict[str, list[str]] = {}
    for error in errors:
        path, colon, reason = str(error).partition("': ")
        if not (colon and path.startswith("'")):
            path, reason = "", str(error)
        paths.setdefault(reason, []).append(path.removeprefix("'"))
    sentences: list[str] = []
    for reason, (first, *more) in paths.items():
        others = f" and {len(more)} more tensor{'s' * (len(more) > 1)}" if more else ""
        sentences.append(f"'{first}'{others}: {reason}" if first else reason)
    return sentences
