"""What an experiment is, and how it is read from a file.

Reading a file imports and executes nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from constrained.constraint.errors import SpecError, raise_all
from constrained.constraint.plain_data import check_extent, is_list, is_mapping, short
from constrained.experiments import schema
from constrained.model.config_file import read_config


class ExperimentError(ValueError):
    """An experiment that cannot be run: one sentence, led by the file and the place in it."""


@dataclass(frozen=True)
class Part:
    """The data, the model or the optimizer of an experiment.

    Attributes:
        name: of what is built in, or an import path, ``"package.module:function"``.
        arguments: what the function or class is called with.
    """

    name: str
    arguments: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The part as plain data, with the keys of the file."""
        return {"name": self.name, **self.arguments}


@dataclass(frozen=True)
class Training:
    """How the networks are trained; all get the same.

    Attributes:
        epochs: passes over the training data.
        batch: examples for one step.
        schedule: of all learning rates, from step to step.
        clip: the largest norm of the gradient, or None.
        seed: of all random numbers.
    """

    epochs: int
    batch: int
    schedule: Literal["constant", "cosine"]
    clip: float | None
    seed: int


@dataclass(frozen=True)
class Experiment:
    """What a file says, and the defaults of what it does not say.

    Attributes:
        name: of the experiment, and of the folder that its results go to.
        data: what the networks learn.
        model: the network.
        optimizer: what trains it.
        param_groups: options of the optimizer for single tensors, as `constrained.param_groups`
            takes them.
        training: how it is trained.
        constraints: a config, as `constrained.plan` takes it.
        compare: whether the same model is trained without constraints beside it.
        monitor: how many steps apart the constrained tensors are monitored, or None.
        save: whether the weights are saved.
    """

    name: str
    data: Part
    model: Part
    optimizer: Part
    param_groups: Mapping[str, Any]
    training: Training
    constraints: Mapping[str, Any]
    compare: bool
    monitor: int | None
    save: bool

    def to_dict(self) -> dict[str, Any]:
        """The experiment as plain data, with the keys of the file and every default."""
        return {
            "name": self.name,
            "data": self.data.to_dict(),
            "model": self.model.to_dict(),
            "optimizer": {**self.optimizer.to_dict(), "param_groups": dict(self.param_groups)},
            "training": asdict(self.training),
            "constraints": dict(self.constraints),
            "compare": self.compare,
            "monitor": self.monitor,
            "save": self.save,
        }


def read_experiment(
    path: str | os.PathLike[str], *, epochs: int | None = None, seed: int | None = None
) -> Experiment:
    """Read an experiment from a file of YAML, JSON or TOML, and check it.

    Args:
        path: of the file.
        epochs: in place of those in the file.
        seed: in place of the one in the file.

    Raises:
        ExperimentError: if the file is missing, or if one thing is wrong with it.
        ConfigErrors: of several such errors.

    Example:
        >>> read_experiment("examples/iris.yaml").model.name                # doctest: +SKIP
        'mlp'
    """
    try:
        given = read_config(path)
        check_extent(given)
    except (OSError, SpecError) as error:
        sentence = str(error)
        raise ExperimentError(
            sentence if sentence.startswith(str(path)) else f"{path}: {sentence}"
        ) from None
    # A name alone is a part without arguments.
    for key in ("data", "model", "optimizer"):
        if isinstance(given.get(key), str):
            given[key] = {"name": given[key]}
    changes = {"epochs": epochs, "seed": seed}
    training = given.get("training")
    if is_mapping(training):
        given["training"] = {**training, **{k: v for k, v in changes.items() if v is not None}}
    sentences = list(_bad_data(given, "")) or schema.problems(given)
    errors = [ExperimentError(f"{path}: {sentence}") for sentence in sentences]
    raise_all(f"{path} is no experiment", errors)
    whole: dict[str, Any] = schema.with_defaults(given)
    optimizer: dict[str, Any] = dict(whole["optimizer"])
    groups: Mapping[str, Any] = optimizer.pop("param_groups", {})
    parts: dict[str, Any] = {
        "data": _part(whole["data"]),
        "model": _part(whole["model"]),
        "optimizer": _part(optimizer),
        "param_groups": groups,
        "training": Training(**whole["training"]),
    }
    return Experiment(**{**whole, **parts})


def _part(given: Mapping[str, Any]) -> Part:
    return Part(given["name"], {key: value for key, value in given.items() if key != "name"})


def _bad_data(value: Any, place: str) -> Iterator[str]:
    """What JSON cannot hold, and numbers that are text."""
    if is_mapping(value) or is_list(value):
        items: Any = value.items() if is_mapping(value) else enumerate(value)
        for key, item in items:
            if is_mapping(value) and not isinstance(key, str):
                yield f"{place or 'the file'} has the key {short(key)}, which must be text."
            else:
                yield from _bad_data(item, f"{place}.{key}" if place else str(key))
    elif isinstance(value, str):
        # The constraints say so by themselves, where a number is expected.
        like = _LIKE_A_NUMBER.fullmatch(value) and math.isfinite(float(value))
        if like and not place.startswith("constraints"):
            yield f"{place} is the text {value!r}: write the number without quotes."
    elif not (value is None or isinstance(value, int) or _is_finite(value)):
        yield (
            f"{place} is {short(value)}; an experiment holds only mappings, lists, text, true, "
            "false, null and finite numbers."
        )


#: Such as 1e-3, 1.5e3 and .5e-3.
_LIKE_A_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def folder_of(out: str | os.PathLike[str], experiment: Experiment) -> Path:
    """Where the results of an experiment go: it is made if need be.

    Raises:
        ExperimentError: if it cannot be made.
    """
    folder = Path(out) / experiment.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExperimentError(f"{folder}: {error.strerror}.") from None
    return folder
