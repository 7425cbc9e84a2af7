"""E40: fusion, quantization and pruning work on released copies; else an error says so."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize as torchs
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.testing import assert_close
from torch.testing._internal.two_tensor import TwoTensor

import constrained.parametrize as ours
from constrained import constrain, release
from tests.promises.foreign import Squash, squashed
from tests.promises.test_e21_atomicity import check_same, snapshot

torch_today = pytest.mark.torch_today
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*quantize:UserWarning"),
]

CURE = r"constrained\.release\(copy\.deepcopy\(model\)\)"


class Unit(nn.Module):
    """Division by the norm, with a right inverse that wrongly returns any tensor as it is."""

    def forward(self, x):
        return x / x.norm()

    def right_inverse(self, y):
        return y


def block():
    conv, norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
    norm.running_mean.uniform_()
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(conv, norm).eval()


def linear(constraint="orthogonal"):
    return constrain(nn.Linear(4, 4), "weight", constraint)


# ------------------------------------------------------------------------------------------ fusion


def test_e40_fusion_works_on_a_released_copy(measured):
    m, x = block(), torch.randn(2, 2, 5, 5)
    constrain(m, "0.weight", "low_rank(rank=1)", view="o i h w -> o (i h w)")
    plain = release(copy.deepcopy(m))
    error = float((fuse_conv_bn_eval(*plain)(x) - m(x)).detach().abs().max())
    measured(f"fused output differs by {error:.0e}")
    assert error < 1e-5


@pytest.mark.parametrize("foreign", [False, True])
def test_e40_fusion_of_a_constrained_module_says_so(foreign):
    m = block()
    if foreign:
        ours.register_parametrization(m, "0.weight", Unit())
    else:
        constrain(m, "0.weight", "orthogonal", view="o i h w -> (i h w) o")
    before = snapshot(m[0])
    with pytest.raises(ValueError, match=f"^'weight'.*{CURE}, a copy without constraints"):
        fuse_conv_bn_eval(*m)
    check_same(m[0], before)


def test_e40_fusion_that_stays_in_the_set_is_right():
    linear, norm = nn.Linear(3, 3), nn.BatchNorm1d(3).eval()
    norm.running_var.uniform_(0.5, 2.0)
    constrain(linear.eval(), "weight", "positive")
    fused, x = fuse_linear_bn_eval(linear, norm), torch.randn(2, 3)
    assert_close(fused(x), norm(linear(x)))


def test_e40_a_parameter_that_is_no_value_is_refused_and_one_that_is_is_taken():
    m = ours.register_parametrization(nn.Linear(3, 3), "weight", Unit())
    before = snapshot(m)
    with pytest.raises(ValueError, match="assigned a parameter that is not a value"):
        m.weight = nn.Parameter(torch.ones(3, 3))
    check_same(m, before)
    m.weight = nn.Parameter(torch.ones(3, 3) / 3)
    assert_close(m.weight.detach(), torch.ones(3, 3) / 3)
    # As in torch, a tensor may be anything.
    m.weight = torch.ones(3, 3)
    assert_close(m.weight.detach(), torch.ones(3, 3) / 3)


@torch_today
def test_e40_fusion_in_torch_today(measured):
    m = block()
    torchs.register_parametrization(m[0], "weight", Unit())
    with pytest.raises(KeyError, match="attribute 'weight' already exists"):
        fuse_conv_bn_eval(*m)
    measured("fusion: KeyError")


# ------------------------------------------------------------------------------------ quantization


def test_e40_quantization_works_on_a_released_copy(measured):
    m, x = nn.Sequential(linear()), torch.randn(8, 4)
    quantized = torch.ao.quantization.quantize_dynamic(release(copy.deepcopy(m)), {nn.Linear})
    assert "quantized" in type(quantized[0]).__module__
    error = float((quantized(x) - m(x)).detach().abs().max())
    measured(f"quantized output differs by {error:.2g}")
    assert error < 0.1


def test_e40_quantization_of_a_constrained_module_says_so():
    m = nn.Sequential(linear())
    with pytest.raises(AssertionError, match=rf"parametrized tensors: {CURE} has plain ones"):
        torch.ao.quantization.quantize_dynamic(m, {nn.Linear})
    m(torch.randn(2, 4)).sum().backward()


@torch_today
def test_e40_quantization_in_torch_today(measured):
    m = torchs.register_parametrization(nn.Linear(4, 4), "weight", Squash())
    with pytest.raises(AssertionError) as caught:
        torch.ao.quantization.quantize_dynamic(nn.Sequential(m), {nn.Linear})
    assert "release" not in str(caught.value)
    measured("quantization: AssertionError")


def test_e40_a_tensor_of_quantized_numbers_is_refused():
    """As torchao's ``quantize_`` assigns one: a parameter of a subclass made of other tensors."""
    m = linear()
    before = snapshot(m)
    sentence = f"'weight' is computed .* was assigned a TwoTensor.*{CURE}, a copy without"
    with pytest.raises(TypeError, match=sentence):
        m.weight = nn.Parameter(TwoTensor(torch.eye(4), torch.eye(4)), requires_grad=False)
    check_same(m, before)


# ----------------------------------------------------------------------------------------- pruning


def test_e40_pruning_works_on_a_released_copy(measured):
    m = linear()
    plain = release(copy.deepcopy(m))
    prune.l1_unstructured(plain, "weight", 0.5)
    zeros = int((plain.weight == 0).sum())
    measured(f"{zeros} of 16 entries pruned")
    assert zeros == 8
    kept = plain.weight != 0
    assert_close(plain.weight[kept].detach(), m.weight[kept].detach())


@pytest.mark.parametrize(
    "method",
    [
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        lambda m: prune.ln_structured(m, "weight", 0.5, n=2, dim=0),
        lambda m: prune.identity(m, "weight"),
        lambda m: prune.custom_from_mask(m, "weight", torch.ones(4, 4)),
        lambda m: prune.global_unstructured([(m, "weight")], prune.L1Unstructured, amount=0.5),
    ],
)
def test_e40_pruning_of_a_constrained_module_says_so(method):
    m = linear()
    before = snapshot(m)
    with pytest.raises(TypeError, match=f"'weight' is computed by .* prune {CURE}"):
        method(m)
    check_same(m, before)
    prune.l1_unstructured(m, "bias", 0.5)
    m(torch.ones(1, 4))


def test_e40_pruning_by_parametrizations_says_so():
    from torch.ao.pruning import WeightNormSparsifier

    m = nn.Sequential(linear(), squashed(n=4))
    before = [snapshot(layer) for layer in m]
    for path in ("0.weight", "1.weight"):
        with pytest.raises(TypeError, match=f"'weight' is computed by .* prune {CURE}"):
            WeightNormSparsifier().prepare(m, [{"tensor_fqn": path}])
    for layer, saved in zip(m, before, strict=True):
        check_same(layer, saved)
    plain, sparsifier = release(copy.deepcopy(m)), WeightNormSparsifier(sparsity_level=0.5)
    sparsifier.prepare(plain, [{"tensor_fqn": "0.weight"}])
    sparsifier.step()
    sparsifier.squash_mask()
    assert type(plain[0]) is nn.Linear and int((plain[0].weight == 0).sum()) >= 8


@torch_today
def test_e40_pruning_in_torch_today(measured):
    m = torchs.register_parametrization(nn.Linear(4, 4), "weight", Squash())
    with pytest.raises(TypeError, match="cannot assign"):
        prune.l1_unstructured(m, "weight", 0.5)
    measured("pruning: TypeError")


def old_weight_norm():
    return torch.nn.utils.weight_norm(nn.Linear(4, 4))


def pruned():
    m = nn.Linear(4, 4)
    prune.l1_unstructured(m, "weight", 0.5)
    return m


@pytest.mark.parametrize("make", [pruned, old_weight_norm])
def test_e40_a_tensor_that_a_hook_computes_cannot_be_constrained(make):
    m = make()
    before = snapshot(m)
    sentence = r"'weight' is an attribute of Linear that is computed anew.*prune\.remove"
    with pytest.raises(ValueError, match=sentence):
        ours.register_parametrization(m, "weight", Squash())
    with pytest.raises(ValueError, match=sentence):
        constrain(m, "weight", "orthogonal")
    with pytest.raises(ValueError, match=sentence):
        constrain(nn.Sequential(m), "0.weight", "orthogonal")
    check_same(m, before)
    if make is pruned:
        prune.remove(m, "weight")
    else:
        torch.nn.utils.remove_weight_norm(m)
    constrain(m, "weight", "symmetric")


def test_e40_what_is_pruned_can_be_constrained():
    m = pruned()
    constrain(m, "weight_orig", "positive")
    m(torch.ones(1, 4)).sum().backward()
    assert (m.weight_orig > 0).all()
    assert_close(m.weight, m.weight_orig * m.weight_mask)
    with pytest.raises(KeyError, match="weight_orig"):
        prune.remove(m, "weight")
    m = release(pruned())
    prune.remove(m, "weight")


# ------------------------------------------------------------------- the old norms, before forward


@pytest.mark.parametrize("foreign", [False, True])
@pytest.mark.parametrize("function", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
def test_e40_the_old_norms_say_so(function, foreign):
    m = squashed(n=4) if foreign else linear()
    before = snapshot(m)
    cure = r"call remove_parametrizations\(module, 'weight'\)" if foreign else f"apply it to {CURE}"
    with pytest.raises(KeyError, match=f"'weight' is computed by .* plain parameter: {cure}"):
        function(m)
    check_same(m, before)
    plain = copy.deepcopy(m)
    if foreign:
        ours.remove_parametrizations(plain, "weight")
    release(plain)
    function(plain)(torch.ones(1, 4)).sum().backward()


@torch_today
@pytest.mark.parametrize("function", [torch.nn.utils.weight_norm, torch.nn.utils.spectral_norm])
def test_e40_the_old_norms_in_torch_today(function):
    with pytest.raises(KeyError, match="^'weight'$"):
        function(squashed(torchs))


def test_e40_the_old_norms_find_nothing_to_remove():
    m = linear()
    before = snapshot(m)
    for function in (torch.nn.utils.remove_weight_norm, torch.nn.utils.remove_spectral_norm):
        with pytest.raises(ValueError, match="of 'weight' not found"):
            function(m)
    check_same(m, before)


def test_e40_the_type_before_is_respected():
    m = linear()
    for P in (ours, torchs):
        assert P.type_before_parametrizations(m) is nn.Linear
    assert "Linear of torch.nn.modules.linear with parametrized tensors" in repr(type(m))
    assert type(m).__name__ == "ParametrizedLinear"


# ---------------------------------------------------------- batch normalization, over all ranks


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("cls", NORMS)
def test_e40_a_batch_norm_becomes_a_synchronized_one(cls, root):
    norm = cls(4)
    norm.running_mean.uniform_()
    norm.weight.data.uniform_(1, 2)
    constrain(norm, "weight", "positive")
    ours.register_parametrization(norm, "bias", Squash())
    ours.register_parametrization(norm, "running_mean", Squash())
    names = [name for name, _ in norm.named_parameters()]
    tensors = [*norm.parameters(), *norm.buffers()]
    x = torch.randn(
        3, 4, *[2] * (2 if cls is nn.BatchNorm2d else 3 if cls is nn.BatchNorm3d else 0)
    )
    expected = None if cls is nn.SyncBatchNorm else norm.eval()(x)
    model = nn.Sequential(nn.Linear(4, 4), norm.train())
    found = nn.SyncBatchNorm.convert_sync_batchnorm(norm if root else model)
    found = found if root else found[1]
    assert isinstance(found, nn.SyncBatchNorm) and found.training
    assert ours.type_before_parametrizations(found) is nn.SyncBatchNorm
    assert [name for name, _ in found.named_parameters()] == names
    assert all(
        a is b for a, b in zip([*found.parameters(), *found.buffers()], tensors, strict=True)
    )
    assert_close(found.weight, norm.weight)
    assert_close(found.running_mean, norm.running_mean)
    if expected is not None:
        # Without a process group, which only training needs, it is the same function.
        assert_close(found.eval()(x), expected)
    found.weight = torch.ones(4)
    assert_close(release(found).weight.detach(), torch.ones(4))


def test_e40_a_conversion_that_fails_leaves_a_batch_norm_as_it_is(monkeypatch):
    m = constrain(nn.BatchNorm1d(4), "weight", "positive")
    before = snapshot(m)

    def fails(*args, **kwargs):
        raise RuntimeError("no synchronization here")

    monkeypatch.setattr(nn.SyncBatchNorm, "__init__", fails)
    with pytest.raises(RuntimeError, match="no synchronization here"):
        nn.SyncBatchNorm.convert_sync_batchnorm(m)
    check_same(m, before)
    assert m.weight.requires_grad and m.weight is m.weight


@torch_today
def test_e40_synchronization_in_torch_today():
    m = torchs.register_parametrization(nn.BatchNorm1d(4), "bias", Squash())
    with pytest.raises(TypeError, match="cannot assign"):
        nn.SyncBatchNorm.convert_sync_batchnorm(m)
