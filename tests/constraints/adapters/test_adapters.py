"""Objects of other libraries as constraints: torch.distributions, geotorch, any module."""

import subprocess
import sys

import geoopt
import geotorch
import pytest
import torch
from torch import nn
from torch.distributions import constraints as theirs
from torch.distributions import transform_to

import constrained
from constrained import constrain, testing
from constrained.constraint.spec import parse

PAIRS = [
    (theirs.positive, "positive()", (5,)),
    (theirs.nonnegative, "nonnegative()", (5,)),
    (theirs.unit_interval, "box(low=0.0, high=1.0)", (5,)),
    (theirs.interval(-2.0, 3.0), "box(low=-2.0, high=3.0)", (5,)),
    (theirs.greater_than(1.0), "greater_than(bound=1.0)", (5,)),
    (theirs.greater_than_eq(torch.tensor(2.0)), "at_least(bound=2.0)", (5,)),
    (theirs.less_than(-1.0), "less_than(bound=-1.0)", (5,)),
    (theirs.simplex, "simplex()", (3, 4)),
    (theirs.lower_triangular, "lower_triangular()", (3, 3)),
    (theirs.lower_cholesky, "cholesky_factor()", (3, 3)),
    (theirs.corr_cholesky, "correlation_cholesky()", (3, 3)),
    (theirs.symmetric, "symmetric()", (3, 3)),
    (theirs.positive_semidefinite, "positive_semidefinite()", (3, 3)),
    (theirs.positive_definite, "positive_definite()", (3, 3)),
    (theirs.independent(theirs.positive, 1), "positive()", (3, 4)),
    (theirs.real, "real()", (3, 4)),
    (theirs.real_vector, "real()", (3, 4)),
]


@pytest.mark.parametrize(("there", "here", "shape"), PAIRS, ids=[here for _, here, _ in PAIRS])
def test_torch_distributions(there, here, shape):
    module = nn.Module()
    module.p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    constrain(module, "p", there)
    (module.p**2).sum().backward()
    assert repr(module.parametrizations.p[0]) == here
    assert there.check(module.p).all()
    again = nn.Module()
    again.p = nn.Parameter(torch.randn(shape))
    constrain(again, constrained.spec(module))
    assert there.check(again.p).all()


@pytest.mark.parametrize("there", [theirs.positive, theirs.simplex, theirs.lower_cholesky])
def test_what_their_transforms_make_is_a_member(there):
    x = torch.randn(7, 4, 4, dtype=torch.float64)
    value = transform_to(there)(x)
    constraint = parse(there).constraint
    assert constraint.contains(value).all()
    free = constraint.right_inverse(value)
    torch.testing.assert_close(constraint(free), value)


def test_cat_and_stack():
    cat = theirs.cat([theirs.positive, theirs.simplex], dim=-1, lengths=[1, 3])
    product = parse(cat).constraint
    value = product.sample((5, 4), generator=torch.Generator().manual_seed(0))
    assert (value[:, 0] > 0).all()
    torch.testing.assert_close(value[:, 1:].sum(-1), torch.ones(5))
    stack = parse(theirs.stack([theirs.positive, theirs.less_than(0.0)], dim=-1)).constraint
    value = stack.sample((5, 2), generator=torch.Generator().manual_seed(0))
    assert (value[:, 0] > 0).all() and (value[:, 1] < 0).all()


@pytest.mark.parametrize(
    "there",
    [
        theirs.boolean,
        theirs.positive_integer,
        theirs.half_open_interval(0.0, 1.0),
        theirs.greater_than(torch.zeros(3)),
    ],
    ids=str,
)
def test_what_has_no_counterpart(there):
    layer = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="torch.distributions.constraints"):
        constrain(layer, "weight", there)
    assert type(layer) is nn.Linear


MANIFOLDS = [
    (lambda: geotorch.Skew(size=(4, 4)), "skew()"),
    (lambda: geotorch.SO(size=(4, 4)), "special_orthogonal()"),
    (lambda: geotorch.Stiefel(size=(4, 2)), "orthogonal()"),
    (lambda: geotorch.Grassmannian(size=(4, 2)), "grassmann()"),
    (lambda: geotorch.Sphere(size=(4,), radius=2.0), "sphere(radius=2.0)"),
    (lambda: geotorch.LowRank(size=(4, 4), rank=2), "low_rank(rank=2)"),
    (lambda: geotorch.FixedRank(size=(4, 4), rank=2), "fixed_rank(rank=2)"),
    (lambda: geotorch.AlmostOrthogonal(size=(4, 4), lam=0.25), "almost_orthogonal(radius=0.25)"),
    (lambda: geotorch.GLp(size=(4, 4)), "invertible(sign=1)"),
    (lambda: geotorch.SL(size=(4, 4)), "special_linear()"),
    (lambda: geotorch.PSD(size=(4, 4)), "positive_definite()"),
    (lambda: geotorch.PSSD(size=(4, 4)), "positive_semidefinite()"),
    (lambda: geotorch.PSSDLowRank(size=(4, 4), rank=1), "psd_low_rank(rank=1)"),
    (lambda: geotorch.PSSDFixedRank(size=(4, 4), rank=1), "psd_fixed_rank(rank=1)"),
    (lambda: geotorch.Hurwitz(size=(4, 4), alpha=0.5), "hurwitz(alpha=0.5)"),
    (lambda: geotorch.Symmetric(), "symmetric()"),
]


class TestGeotorch:
    @pytest.mark.parametrize(("make", "ours"), MANIFOLDS, ids=[ours for _, ours in MANIFOLDS])
    def test_objects(self, make, ours):
        with torch.random.fork_rng():
            manifold = make()
        assert repr(parse(manifold).constraint) == ours

    def test_an_object_on_a_layer(self):
        with torch.random.fork_rng():
            manifold = geotorch.LowRank(size=(4, 4), rank=2)
        layer = constrain(nn.Linear(4, 4), "weight", manifold)
        layer(torch.ones(1, 4)).sum().backward()
        assert constrained.spec(layer)["weight"] == {"name": "low_rank", "rank": 2}
        assert torch.linalg.matrix_rank(layer.weight) == 2

    @pytest.mark.parametrize(
        ("spec", "ours"),
        [
            ("geotorch:Skew(size=(4, 4))", "skew()"),
            ("geotorch:Sphere(radius=2.0)", "sphere(radius=2.0)"),
            ("geotorch:Hurwitz(size=(4, 4), alpha=0.1)", "hurwitz(alpha=0.1)"),
            ("geotorch:Stiefel(size=(4, 4), triv='cayley')", "orthogonal()"),
            ({"name": "geotorch:LowRank", "size": [4, 4], "rank": 2}, "low_rank(rank=2)"),
            ({"name": "geotorch:AlmostOrthogonal", "lam": 0.5}, "almost_orthogonal(radius=0.5)"),
        ],
    )
    def test_strings_and_mappings(self, spec, ours):
        layer = constrain(nn.Linear(4, 4), "weight", spec)
        assert repr(layer.parametrizations.weight[0]) == ours

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("geotorch:Sphere(radios=1)", "Did you mean 'radius'"),
            ("geotorch:LowRank((4, 4), 2)", "by name"),
            ("geotorch:LowRank(size=(4, 4))", "rank"),
            ("geotorch:Nothing()", "not a class of geotorch"),
            ("geotorch:sphere()", "not a class of geotorch"),
        ],
    )
    def test_errors(self, text, message):
        layer = nn.Linear(4, 4)
        with pytest.raises(ValueError, match=message):
            constrain(layer, "weight", text)
        assert type(layer) is nn.Linear

    def test_strings_import_nothing(self):
        code = (
            "import sys, torch, constrained; m = torch.nn.Linear(3, 3); "
            "constrained.constrain(m, 'weight', 'geotorch:Skew()'); "
            "sys.exit('geotorch' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_part_that_is_not_constrained():
    cat = theirs.cat([theirs.positive, theirs.real], dim=-1, lengths=[1, 3])
    layer = nn.Linear(4, 5)
    weight = layer.weight.detach().clone()
    constrain(layer, "weight", cat)
    assert cat.check(layer.weight).all()
    assert torch.equal(layer.weight[:, 1:], weight[:, 1:])
    again = constrain(nn.Linear(4, 5), constrained.spec(layer))
    assert constrained.spec(again) == constrained.spec(layer)
    stack = parse(theirs.stack([theirs.real, theirs.less_than(0.0)], dim=-1)).constraint
    assert stack.parts == [{"name": "real"}, {"name": "negative"}]


OF_GEOOPT = [
    (lambda: geoopt.Euclidean(ndim=1), "real()", (3,)),
    (lambda: geoopt.Stiefel(), "orthogonal()", (4, 2)),
    (lambda: geoopt.CanonicalStiefel(), "orthogonal()", (4, 2)),
    (lambda: geoopt.EuclideanStiefel(), "orthogonal()", (4, 2)),
    (lambda: geoopt.EuclideanStiefelExact(), "orthogonal()", (4, 2)),
    (lambda: geoopt.Sphere(), "sphere()", (4,)),
    (lambda: geoopt.SphereExact(), "sphere()", (4,)),
    (lambda: geoopt.SymmetricPositiveDefinite(), "positive_definite()", (3, 3)),
    (lambda: geoopt.BirkhoffPolytope(), "doubly_stochastic()", (3, 3)),
    (lambda: geoopt.PoincareBall(c=2.0), "poincare_ball(curvature=2.0)", (3,)),
    (lambda: geoopt.PoincareBallExact(c=1.0), "poincare_ball()", (3,)),
    (lambda: geoopt.Stereographic(k=-2.0), "poincare_ball(curvature=2.0)", (3,)),
    (lambda: geoopt.Stereographic(k=0.0), "real()", (3,)),
    (lambda: geoopt.SphereProjection(k=1.0), "real()", (3,)),
    (lambda: geoopt.Lorentz(k=2.0), "lorentz(curvature=0.5)", (4,)),
    (lambda: geoopt.Scaled(geoopt.Sphere(), 2.0), "sphere()", (4,)),
    (
        lambda: geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.Euclidean(), 2)),
        "product(parts=[{'name': 'sphere'}, {'name': 'real'}], sizes=[3, 2], dim=-1)",
        (5,),
    ),
]


class TestGeoopt:
    @pytest.mark.parametrize(("make", "ours", "shape"), OF_GEOOPT)
    def test_objects(self, make, ours, shape):
        manifold = make()
        module = nn.Module()
        module.p = nn.Parameter(torch.randn(2, *shape))
        constrain(module, "p", manifold)
        constraint = module.parametrizations.p[0]
        assert repr(constraint) == ours
        assert manifold.check_point_on_manifold(module.p)
        assert constraint.contains(constraint.sample((2, *shape))).all()
        assert manifold.check_point_on_manifold(constraint.sample((2, *shape)))
        again = nn.Module()
        again.p = nn.Parameter(torch.randn(2, *shape))
        constrain(again, constrained.spec(module))
        assert constrained.spec(again) == constrained.spec(module)

    @pytest.mark.parametrize(
        ("make", "reason"),
        [
            (lambda: geoopt.PoincareBall(learnable=True), "learned"),
            (lambda: geoopt.Sphere(intersection=torch.eye(4)[:, :2]), "subspace"),
            (lambda: geoopt.UpperHalf(), "UpperHalf"),
            (lambda: geoopt.BoundedDomain(), "BoundedDomain"),
            (lambda: geoopt.ProductManifold((geoopt.Stiefel(), (4, 2))), "several dimensions"),
            (lambda: geoopt.Scaled(geoopt.UpperHalf()), "UpperHalf"),
        ],
    )
    def test_what_has_no_counterpart(self, make, reason):
        layer = nn.Linear(4, 4)
        message = r"'weight': geoopt\.\w+ has no counterpart"
        with pytest.raises(ValueError, match=message) as raised:
            constrain(layer, "weight", make())
        assert reason in str(raised.value)
        assert type(layer) is nn.Linear

    @pytest.mark.parametrize(
        ("text", "ours"),
        [
            ("geoopt:Sphere()", "sphere()"),
            ("geoopt:CanonicalStiefel", "orthogonal()"),
            ("geoopt:PoincareBall(c=2.0)", "poincare_ball(curvature=2.0)"),
        ],
    )
    def test_strings(self, text, ours):
        layer = constrain(nn.Linear(4, 4), "weight", text)
        assert repr(layer.parametrizations.weight[0]) == ours


@pytest.mark.parametrize("module", [nn.Module(), nn.ModuleList(), nn.ParameterList()])
def test_a_module_without_a_forward(module):
    layer = nn.Linear(4, 4)
    with pytest.raises(
        ValueError, match=f"'weight': .*'forward'.*{type(module).__name__} has none"
    ):
        constrain(layer, "weight", module)
    assert type(layer) is nn.Linear


def test_adapters_import_nothing():
    code = (
        "import sys, torch, constrained; constrained.names(); "
        "sys.exit(bool({'geoopt', 'geotorch', 'pyro', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "text",
    [
        "torch.nn:Linear(2, 2)",
        "os:system('true')",
        "torch.hub:load('a', 'b')",
        "geotorch.os:getcwd",
    ],
)
def test_configs_make_constraints_only(text):
    with pytest.raises(ValueError):
        constrain(nn.Linear(4, 4), "weight", text)


def test_any_module_with_a_forward():
    layer = constrain(nn.Linear(4, 4), "weight", nn.Tanh())
    assert (layer.weight.abs() <= 1).all()


def test_the_laws_hold_for_what_an_adapter_makes():
    constraint = parse(theirs.interval(-2.0, 3.0)).constraint
    testing.check(constraint, event=())
