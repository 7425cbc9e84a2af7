"""Methods of Hugging Face's models that write into the tensors of their submodules.

The models of transformers initialise, tie, load and resize the tensors of all their submodules by
methods of the class ``PreTrainedModel``, which expect plain parameters. These methods are wrapped
so that they find plain parameters. That happens as soon as a model has constraints and the class
has been imported.

transformers is not imported here. In a version without these methods nothing is changed.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint.base import Constraint
from constrained.model.constrain import constrain
from constrained.model.release import release
from constrained.model.specs import spec
from constrained.model.writable import writable
from constrained.parametrized.module_class import patch_when_imported
from constrained.parametrized.parametrization_list import ParametrizationList, read
from constrained.parametrized.tensor_locations import Location, constrained_lists, locations
from constrained.registration.install import check_can_hold, share

_MODULE, _CLASS = "transformers.modeling_utils", "PreTrainedModel"


#: The constraints that were released while a model loads; they are applied again afterwards.
_awaiting: weakref.WeakKeyDictionary[nn.Module, dict[str, Any]] = weakref.WeakKeyDictionary()


def adapt() -> None:
    """Let the models of transformers, if it is imported, write into constrained tensors."""
    library = sys.modules.get(_MODULE)
    cls = getattr(library, _CLASS, None)
    if cls is None or "_writes_constrained" in vars(cls):
        return
    cls._writes_constrained = True
    for name in ("initialize_weights", "get_expanded_tied_weights_keys"):
        _replace(cls, name, _writing)
    _replace(cls, "tie_weights", _tying)
    _replace(cls, "resize_token_embeddings", _resizing)
    # The first puts the tensors of a checkpoint into a model on the meta device. The second
    # initialises and ties the tensors that the checkpoint lacks.
    load, finish = "convert_and_load_state_dict_in_model", "_finalize_model_loading"
    if hasattr(library, load) and isinstance(vars(cls).get(finish), staticmethod):
        _replace(library, load, _loading)
        setattr(cls, finish, staticmethod(_finishing(getattr(cls, finish))))


def _replace(owner: Any, name: str, by: Callable[..., Any]) -> None:
    method: Any = owner.__dict__.get(name)
    if inspect.isfunction(method):
        setattr(owner, name, by(method))


def _writing(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        with writable(self):
            return method(self, *args, **kwargs)

    return inside


# ------------------------------------------------------------------------------------ tie_weights


def _tying(tie_weights: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(tie_weights)

    @functools.wraps(tie_weights)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        # Assigning a parameter ties a plain tensor. A constrained one would copy the numbers only.
        for target, found in _to_be_shared(self, given.arguments):
            share(target.module, target.name, found)
        with writable(self):
            return tie_weights(self, *args, **kwargs)

    return inside


def _to_be_shared(
    model: Any, given: Mapping[str, Any]
) -> list[tuple[Location, ParametrizationList]]:
    """The constrained tensors that are to be tied, each with the list that it is to share.

    Raises:
        ValueError: if a tensor is to be tied to one with another constraint, or with none. Nothing
            has changed then.
    """
    is_known = given.get("recompute_mapping") is False
    pairs = model.all_tied_weights_keys if is_known else model.get_expanded_tied_weights_keys(True)
    available = locations(model) if pairs else {}
    result: list[tuple[Location, ParametrizationList]] = []
    for target, source in pairs.items():
        if target not in available or source not in available:
            continue
        mine, found = available[target].tensor, available[source].tensor
        if mine is found or not isinstance(mine, ParametrizationList):
            continue
        other = found if isinstance(found, ParametrizationList) else None
        if other is not None and _are_alike(mine, other):
            # Tensors from a checkpoint are not tied if they differ in it.
            if given.get("missing_keys") is None or _are_equal(
                read(mine, target), read(other, source)
            ):
                check_can_hold(available[target].module, available[target].name)
                result.append((available[target], other))
        elif given.get("missing_keys") is None:
            kind = "is plain" if other is None else f"has {other.described()}"
            raise ValueError(
                f"'{target}', which has {mine.described()}, cannot be tied to '{source}', which "
                f"{kind}: tied tensors have one constraint. Constrain '{source}' in the same way, "
                f"or release '{target}', before tie_weights()."
            )
    return result


def _are_alike(one: Any, other: Any) -> bool:
    if not isinstance(one, ParametrizationList) or not isinstance(other, ParametrizationList):
        return False
    chains = one.chain(), other.chain()
    if not all(isinstance(module, Constraint) for chain in chains for module in chain):
        return False
    first, second = ([module.spec() for module in chain] for chain in chains)  # type: ignore[operator]
    return first == second


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


# ------------------------------------------------------------------------------- from_pretrained


def _loading(load: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(load)

    @functools.wraps(load)
    def inside(model: Any, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(model, state_dict, *args, **kwargs).arguments
        _constrain_sources(model)
        constraints = _not_among(model, _keys(state_dict, given.get("load_config")))
        for path in constraints:
            release(model, path)
        _awaiting[model] = constraints
        return load(model, state_dict, *args, **kwargs)

    return inside


def _constrain_sources(model: Any) -> None:
    """Move the constraint of each tensor that will be tied to the tensor that it is tied to.

    For example, a class may constrain its head, which is tied to the embeddings later: a checkpoint
    has it under the name of the embeddings, and on the meta device nothing is tied yet. Then the
    constraint moves to the embeddings, and the plain head is tied to them once they are loaded.
    """
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        constraints, available = spec(model), locations(model)
        if target not in constraints or source not in available:
            continue
        mine, found = available[target].tensor, available[source].tensor
        if not isinstance(found, nn.Module):
            constrain(model, source, constraints[target])
        elif mine is found or not _are_alike(mine, found):
            continue
        release(model, target)


def _finishing(finish: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(finish)
    def inside(model: Any, *args: Any, **kwargs: Any) -> Any:
        result = finish(model, *args, **kwargs)
        constraints = _awaiting.pop(model, {})
        # A tensor that was tied to a constrained one is constrained already.
        done = {
            path for path, place in locations(model).items() if isinstance(place.tensor, nn.Module)
        }
        with torch.no_grad():
            constrain(model, {k: v for k, v in constraints.items() if k not in done})
        return result

    return inside


def _keys(state_dict: Mapping[str, Any], config: Any) -> set[str]:
    """The keys of a checkpoint, and the names that transformers gives them while loading."""
    # Copies, since these objects record what they are used for.
    mapping = copy.deepcopy(getattr(config, "weight_mapping", None) or [])
    found = set(state_dict)
    for key in state_dict:
        for entry in mapping:
            # An entry with operations combines several tensors, which never are free parameters.
            if hasattr(entry, "rename_source_key") and not hasattr(entry, "operations"):
                key = entry.rename_source_key(key)[0]
        found.add(key)
    return found


def _not_among(model: nn.Module, keys: Collection[str]) -> dict[str, Any]:
    """The constraints of tensors whose free parameters are not all in a checkpoint."""
    constraints, missing = spec(model), dict[str, Any]()
    for path, found in constrained_lists(model):
        prefix, _, name = path.rpartition(".")
        inside = [f"{prefix}.parametrizations.{name}.{key}" for key in found.names()]
        # The keys may have the prefix of the model's body or not.
        if not all(any(_is_same(key, other) for other in keys) for key in inside):
            missing[path] = constraints[path]
    return missing


def _is_same(key: str, other: str) -> bool:
    return f".{key}".endswith(f".{other}") or f".{other}".endswith(f".{key}")


# ------------------------------------------------------------------------ resize_token_embeddings


def _resizing(resize: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(resize)

    @functools.wraps(resize)
    def inside(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(self, *args, **kwargs).arguments
        old = self.get_input_embeddings()
        size = _size(old.weight, given.get("new_num_tokens"), given.get("pad_to_multiple_of"))
        constraints = {} if size == len(old.weight) else _of_tokens(self)
        for path, (constraint, value) in constraints.items():
            _check_holds(path, constraint, value.new_empty((size, *value.shape[1:]), device="meta"))
        for path in constraints:
            release(self, path)
        result = resize(self, *args, **kwargs)
        constrain(self, {path: constraint for path, (constraint, _) in constraints.items()})
        return result

    return inside


def _size(weight: Tensor, wanted: int | None, multiple: int | None) -> int:
    size = len(weight) if wanted is None else wanted
    return size if not multiple else -(-size // multiple) * multiple


def _of_tokens(model: Any) -> dict[str, tuple[dict[str, Any], Tensor]]:
    """The constrained tensors that have an entry for each token: path -> constraint and value."""
    constraints = spec(model)
    modules = {id(m) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    found: dict[str, tuple[dict[str, Any], Tensor]] = {}
    for path, place in locations(model).items():
        if path in constraints and id(place.module) in modules:
            found[path] = constraints[path], getattr(place.module, place.name)
    return found


def _check_holds(path: str, constraint: dict[str, Any], tensor: Tensor) -> None:
    """Raise, before anything has changed, if a constraint cannot hold for another size."""
    module = nn.Module()
    module.weight = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
    try:
        constrain(module, "weight", constraint)
    except ValueError as error:
        raise ValueError(
            f"'{path}' cannot have the shape {tuple(tensor.shape)} under its constraint: {error} "
            "release() it first, and constrain it anew after resize_token_embeddings()."
        ) from error


patch_when_imported("transformers", adapt)
