"""Defects of geotorch 0.4.0 that concern several families: shown in geotorch, absent here.

Those of one family are tests of the same pattern, `test_gNN_...`, in that family's file.
"""

import re
from pathlib import Path

import geotorch
import pytest
import torch
from torch import nn

import constrained
from constrained import constrain, get

SQUARE = [
    "orthogonal",
    "symmetric",
    "skew",
    "positive_definite",
    "low_rank(rank=2)",
    "rank_one",
    "sphere",
    "hurwitz",
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def layer(shape=(6, 6), dtype=torch.float32):
    return nn.Linear(shape[1], shape[0], bias=False, dtype=dtype)


def orthogonal_there(module):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        geotorch.orthogonal(module, "weight")
    return module


def sample(constraint, shape, dtype=torch.float32):
    return constraint.sample(shape, generator=generator(), dtype=dtype)


def test_every_defect_has_a_test():
    text = "".join(path.read_text("utf-8") for path in Path(__file__).parents[1].rglob("test_*.py"))
    found = {int(number) for number in re.findall(r"def test_g(\d\d)_", text)}
    assert found == set(range(1, 23))


@pytest.mark.parametrize("name", SQUARE)
def test_g03_a_failed_assignment_changes_nothing(name):
    module = constrain(layer(), "weight", name)
    before = module.weight.clone()
    state = {key: value.clone() for key, value in module.state_dict().items()}
    for wrong in (
        torch.full((6, 6), torch.nan),
        torch.randn(5, 6, generator=generator()),
        100 + torch.arange(36.0).reshape(6, 6).sin().cumsum(1),
    ):
        with pytest.raises(ValueError):
            module.weight = wrong
        assert torch.equal(module.weight, before)
        assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


def test_g03_there_the_weight_is_lost():
    module = orthogonal_there(layer())
    with torch.no_grad():
        module.parametrizations.weight.original.add_(torch.randn(6, 6, generator=generator()) / 2)
    before = module.weight.detach().clone()
    other = sample(get("orthogonal")(), (6, 6), torch.float64)
    with pytest.raises(ValueError):
        module.weight = other
    after = module.weight.detach()
    assert (after - before).norm() > 0.1 and (after - other).norm() > 0.1


@pytest.mark.parametrize("name", SQUARE)
def test_g04_an_assignment_keeps_the_shape(name):
    module = constrain(layer(), "weight", name)
    before = module.weight.clone()
    with pytest.raises(ValueError, match="shape"):
        module.weight = before.unsqueeze(0)
    assert module.weight.shape == (6, 6) and torch.equal(module.weight, before)


def test_g04_there_the_shape_follows():
    module = layer()
    geotorch.skew(module, "weight")
    module.weight = module.weight.detach().unsqueeze(0)
    assert module.weight.shape == (1, 6, 6)


@pytest.mark.parametrize("name", SQUARE)
def test_g12_a_feasible_weight_is_kept(name):
    module = layer()
    constraint = constrain(layer(), "weight", name).parametrizations.weight[0]
    inside = sample(constraint, (6, 6))
    with torch.no_grad():
        module.weight.copy_(inside)
    constrain(module, "weight", name)
    torch.testing.assert_close(module.weight.detach(), inside, rtol=0, atol=1e-5)


def test_g12_there_it_is_thrown_away():
    module = layer()
    inside = sample(get("orthogonal")(), (6, 6))
    with torch.no_grad():
        module.weight.copy_(inside)
    assert (orthogonal_there(module).weight - inside).norm() > 0.5


@pytest.mark.parametrize("name", SQUARE)
def test_g13_the_global_generator_is_left_alone(name):
    module = layer()
    before = torch.get_rng_state()
    constrain(module, "weight", name)
    assert torch.equal(torch.get_rng_state(), before)


def test_g13_there_it_is_used():
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        geotorch.orthogonal(layer(), "weight")
        assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["orthogonal", "sphere", "positive_definite", "low_rank(rank=2)"])
def test_g14_a_single_precision_error_is_no_member_in_double(name):
    constraint = constrain(layer(), "weight", name).parametrizations.weight[0]
    inside = sample(constraint, (6, 6), torch.float64)
    noise = torch.randn(6, 6, generator=generator(1), dtype=torch.float64)
    nearly = inside + 1e-5 * inside.norm() * noise / noise.norm()
    module = constrain(layer(dtype=torch.float64), "weight", name)
    with pytest.raises(ValueError, match="violates"):
        module.weight = nearly
    module.weight = inside
    violations = constrained.violations(module)
    assert violations["weight"] <= 1e-14 * (1 + float(inside.norm()))


def test_g14_there_it_is_locked_in():
    module = orthogonal_there(layer(dtype=torch.float64))
    inside = sample(get("orthogonal")(), (6, 6), torch.float64)
    module.weight = inside + 1e-6 * torch.ones(6, 6, dtype=torch.float64)
    error = module.weight.mT @ module.weight - torch.eye(6, dtype=torch.float64)
    assert error.abs().max() > 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["orthogonal", "orthogonal(map='cayley')", "orthogonal(map='exp')"]
)
def test_g15_ten_thousand_steps_do_not_drift(name):
    module = constrain(layer((8, 8)), "weight", name)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    noise = generator()
    for _ in range(10_000):
        optimizer.zero_grad()
        (module.weight * torch.randn(8, 8, generator=noise)).sum().backward()
        optimizer.step()
    assert constrained.violations(module)["weight"] < 3e-6
    module.weight = module.weight.detach().clone()


def test_g15_there_a_point_drifts_until_it_is_refused():
    module = orthogonal_there(layer((8, 8)))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    noise = generator()
    with pytest.raises(ValueError):
        for _ in range(2_000):
            optimizer.zero_grad()
            (module.weight * torch.randn(8, 8, generator=noise)).sum().backward()
            optimizer.step()
            geotorch.update_base(module, "weight")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", SQUARE)
def test_g17_half_precision_layers(name, dtype):
    module = constrain(layer(dtype=dtype), "weight", name)
    assert module.weight.dtype == dtype
    constrained.assert_feasible(module)
    constraint = module.parametrizations.weight[0]
    rounded = sample(constraint, (6, 6)).to(dtype)
    module.weight = constraint.start(rounded)
    torch.testing.assert_close(module.weight.detach(), rounded, rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_g17_there_they_are_refused(dtype):
    with pytest.raises((NotImplementedError, RuntimeError)):
        orthogonal_there(layer(dtype=dtype))


def test_g18_kernels_are_matrices_where_a_view_says_so():
    conv = nn.Conv2d(3, 8, 3)
    constrain(conv, "weight", "orthogonal", view="o i h w -> o (i h w)")
    matrix = conv.weight.reshape(8, 27)
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(8), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Conv2d(3, 8, 3), "24 matrices of 3 x 3.*8 x 27.*view='conv'"),
        (nn.Conv1d(3, 8, 5), "8 matrices of 3 x 5.*8 x 15.*view='conv'"),
        (nn.Conv3d(1, 8, 2), "16 matrices of 2 x 2.*8 x 8.*view='conv'"),
        (nn.LazyConv2d(8, 3), "24 matrices of 3 x 3.*8 x 27.*view='conv'"),
        (nn.ConvTranspose2d(3, 8, 3), "24 matrices of 3 x 3.*8 x 27.*view='conv'"),
        (nn.Conv2d(4, 6, 3, groups=2), "2 matrices of 3 x 18, one for each group.*view='conv'"),
    ],
    ids=["2d", "1d", "3d", "lazy", "transposed", "groups"],
)
def test_g18_without_one_a_warning_says_what_is_constrained(conv, message):
    with pytest.warns(UserWarning, match=message) as caught:
        constrain(conv, "weight", "orthogonal")
        if isinstance(conv, nn.LazyConv2d):
            conv(torch.ones(1, 3, 4, 4))
    assert [warning.filename for warning in caught] == [__file__]


KERNELS = {
    "1d": lambda: nn.Conv1d(3, 4, 2),
    "2d": lambda: nn.Conv2d(3, 8, 3),
    "3d": lambda: nn.Conv3d(1, 2, 2),
    "groups": lambda: nn.Conv2d(8, 16, (8, 1), groups=8),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 2),
    "transposed groups": lambda: nn.ConvTranspose1d(4, 6, 3, groups=2),
    "lazy": lambda: nn.LazyConv2d(4, 3),
    "lazy transposed": lambda: nn.LazyConvTranspose1d(4, 3),
}


def constrained_kernel(kind, constraint, **kwargs):
    conv = constrain(KERNELS[kind](), "weight", constraint, **kwargs)
    if "lazy" in kind:
        conv(torch.ones(1, 3, *[4] * len(conv.kernel_size)))
    return conv


def of_each_output(conv):
    """The weights of a convolution as a matrix, with a row for each output channel."""
    if not conv.transposed:
        return conv.weight.detach().flatten(1)
    each = conv.weight.detach().unflatten(0, (conv.groups, -1)).transpose(1, 2)
    return each.flatten(0, 1).flatten(1)


@pytest.mark.parametrize("kind", KERNELS)
@pytest.mark.parametrize("event_dim", [1, 2])
def test_g18_the_view_that_the_warning_names_is_the_one_that_is_meant(kind, event_dim):
    name = {1: "sphere", 2: "orthogonal"}[event_dim]
    with pytest.warns(UserWarning, match="kernel of shape") as caught:
        constrained_kernel(kind, name)
    assert len(caught) == 1
    meant, same = re.findall("view='(.*?)'", str(caught[0].message))
    constrained.assert_feasible(constrained_kernel(kind, name, view=same))
    conv = constrained_kernel(kind, name, view=meant)
    rows = of_each_output(conv)
    if event_dim == 1:
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)))
    else:
        values = torch.linalg.svdvals(rows.unflatten(0, (conv.groups, -1)))
        torch.testing.assert_close(values, torch.ones_like(values))


def takes_vectors(name):
    arguments, _ = constrained.get(name).examples[0]
    constraint = constrained.get(name)(**arguments)
    return constraint.event_dim == 1 and constraint.shape_problem((3,)) is None


@pytest.mark.parametrize("name", [n for n in constrained.names() if takes_vectors(n)])
def test_g18_every_set_of_vectors_warns(name):
    arguments, _ = constrained.get(name).examples[0]
    with pytest.warns(UserWarning, match="72 vectors of 3. For 8 vectors of 27, one for each"):
        constrain(nn.Conv2d(3, 8, 3), "weight", constrained.get(name)(**arguments))


@pytest.mark.parametrize("name", ["nonnegative", "box(low=-1, high=1)", "spectral_norm_conv"])
def test_g18_sets_of_numbers_and_of_whole_tensors_do_not(name):
    constrained.assert_feasible(constrain(nn.Conv2d(3, 8, 3), "weight", name))


def test_g18_vectors_that_are_filters_do_not():
    for conv in (nn.Conv1d(1, 8, 3), nn.Conv2d(4, 4, (1, 3), groups=4)):
        constrained.assert_feasible(constrain(conv, "weight", "sphere"))


def test_g18_a_view_that_changes_nothing_means_the_small_matrices():
    conv = nn.Conv2d(3, 8, 3)
    constrain(conv, "weight", "orthogonal", view="o i h w -> o i h w")
    constrained.assert_feasible(conv)


def test_g18_there_tiny_matrices_are_taken_without_a_word():
    with torch.random.fork_rng():
        conv = nn.Conv2d(3, 8, 3)
        geotorch.orthogonal(conv, "weight")
    square = conv.weight @ conv.weight.mT
    torch.testing.assert_close(square, torch.eye(3).expand(8, 3, 3, 3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["orthogonal", "sphere", "low_rank(rank=8)"])
def test_g22_memory_is_that_of_the_weight(name):
    module = constrain(layer((2048, 8)), "weight", name)
    held = sum(value.numel() for value in module.state_dict().values())
    assert held <= 2 * 2048 * 8


def test_g22_a_very_tall_layer_is_constrained_at_once():
    module = constrain(layer((30_000, 50)), "weight", "orthogonal")
    assert sum(value.numel() for value in module.state_dict().values()) == 30_000 * 50
    constrained.assert_feasible(module)


def test_g21_complex_matrices():
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64, generator=generator()))
    constrain(module, "weight", "hermitian")
    module.weight.abs().square().sum().backward()
    assert module.weight.dtype == torch.complex64
    assert torch.equal(module.weight, module.weight.mH)


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_g21_there_they_are_refused():
    module = nn.Module()
    module.weight = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64, generator=generator()))
    with pytest.raises((NotImplementedError, RuntimeError)):
        orthogonal_there(module)


def test_g22_there_a_base_of_the_square_of_the_rows_comes_along():
    module = orthogonal_there(layer((512, 8)))
    assert sum(value.numel() for value in module.state_dict().values()) >= 512 * 512
