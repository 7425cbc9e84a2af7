"""The operators of the catalogue: their schemas, and whether they are what torch expects."""

import importlib
import pkgutil

import pytest
import torch

from constraints import math
from constraints.math.autograd import differentiable
from constraints.math.clip_singular_values import clamp_singular_values, clip_singular_values
from constraints.math.polar import polar
from constraints.math.sinkhorn import sinkhorn

#: Exported programs hold the names of the operators and of their arguments.
SCHEMAS = """
clamp_singular_values(Tensor X, float low, float high) -> Tensor
clamp_singular_values_gradient(Tensor X, Tensor W, Tensor V, float low, float high) -> Tensor
clip_singular_values(Tensor X, float bound) -> Tensor
clip_singular_values_gradient(Tensor X, Tensor W, Tensor V, float bound) -> Tensor
complex_polar_factor(Tensor X) -> Tensor
complex_polar_gradient(Tensor X, Tensor W, Tensor V) -> Tensor
isotonic(Tensor y, Tensor? weight=None) -> Tensor
lift(Tensor X, SymInt sign, bool across) -> (Tensor, Tensor, Tensor)
loudest_wave(Tensor K, int[] sizes, int[] points) -> Tensor
polar_factor(Tensor X) -> Tensor
polar_gradient(Tensor X, Tensor W, Tensor V) -> Tensor
radial(Tensor X, Tensor directions, float bound) -> (Tensor, Tensor)
radial_gradient(Tensor G, Tensor X, Tensor directions, float bound) -> Tensor
sinkhorn(Tensor X) -> Tensor
sinkhorn_gradient(Tensor W, Tensor V) -> Tensor
unimodular(Tensor X) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)
""".split("\n")[1:-1]

OPERATORS = [schema.split("(")[0] for schema in SCHEMAS]


def arguments(name):
    """Tensors and numbers that an operator takes, two elements of a batch."""
    g = torch.Generator().manual_seed(0)
    tall, square, parts, kernel, G = (
        torch.randn(shape, dtype=torch.float64, generator=g)
        for shape in ((2, 5, 4), (2, 4, 4), (2, 2, 4, 4), (2, 1, 3, 3, 9), (2, 5, 4))
    )
    operators = torch.ops.constraints
    return {
        "clamp_singular_values": (tall, 0.5, 1.0),
        "clamp_singular_values_gradient": (
            tall,
            clamp_singular_values(tall, 0.5, 1.0),
            G,
            0.5,
            1.0,
        ),
        "clip_singular_values": (tall, 1.0),
        "clip_singular_values_gradient": (tall, clip_singular_values(tall, 1.0), G, 1.0),
        "complex_polar_factor": (parts,),
        "complex_polar_gradient": (parts, operators.complex_polar_factor(parts), parts.flip(-1)),
        "isotonic": (tall,),
        "lift": (square, 1, True),
        "loudest_wave": (kernel, [3, 3], [8, 8]),
        "polar_factor": (tall,),
        "polar_gradient": (tall, polar(tall), G),
        "radial": (tall, tall[:, :2], 1.0),
        "radial_gradient": (G, tall, tall[:, :2], 1.0),
        "sinkhorn": (square,),
        "sinkhorn_gradient": (sinkhorn(square), square.mT.contiguous()),
        "unimodular": (square,),
    }[name]


def test_schemas_stay():
    for module in pkgutil.iter_modules(math.__path__):
        importlib.import_module(f"constraints.math.{module.name}")
    found = (str(schema) for schema in torch._C._jit_get_all_schemas())
    found = [schema for schema in found if schema.startswith("constraints::")]
    assert sorted(found) == [f"constraints::{schema}" for schema in SCHEMAS]


# From torch 2.15 on, opcheck reads the gradients of its own intermediate results.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_well_formed(name):
    operator = getattr(torch.ops.constraints, name).default
    torch.library.opcheck(operator, arguments(name))


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_take_batches(name):
    operator, args = getattr(torch.ops.constraints, name), arguments(name)
    dims = tuple(0 if isinstance(arg, torch.Tensor) else None for arg in args)
    tensors = [arg for arg, dim in zip(args, dims, strict=True) if dim == 0]
    numbers = args[len(tensors) :]
    found = torch.vmap(lambda *each: operator(*each, *numbers))(*tensors)
    expected = operator(*args)
    pairs = [(found, expected)] if isinstance(found, torch.Tensor) else zip(found, expected)  # noqa: B905
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_an_operator_is_made_of_a_value_and_its_derivative():
    # x |x| if all |x| are above a number, else x; the derivative is 2 |x| or 1.
    def value(X, low):
        return X * X.abs() if bool((X.abs() > low).all()) else X.clone()

    def derivative(X, W, V, low):
        return torch.where(X == W, V, 2 * X.abs() * V)

    def gradient(X, W, V, low):
        called.append(X)
        return derivative(X, W, V, low)

    value.__annotations__ = {"X": torch.Tensor, "low": float, "return": torch.Tensor}
    gradient.__annotations__ = {
        **dict.fromkeys("XWV", torch.Tensor),
        "low": float,
        "return": torch.Tensor,
    }
    called = []
    f = differentiable("tests::value", value, "tests::gradient", gradient, derivative)
    X = torch.tensor([2.0, -3.0], dtype=torch.float64, requires_grad=True)
    f(X, 1.0).sum().backward()
    assert torch.equal(X.grad, 2 * X.detach().abs()) and len(called) == 1
    torch.autograd.gradcheck(lambda X: f(X, 1.0), (X,), check_forward_ad=True)
    torch.autograd.gradgradcheck(lambda X: f(X, 1.0), (X,))
    _, tangent = torch.func.jvp(lambda X: f(X, 1.0), (X.detach(),), (torch.ones_like(X.detach()),))
    assert torch.equal(tangent, 2 * X.detach().abs())
    compiled = torch.compile(lambda X: f(X, 1.0), backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), f(X, 1.0))
