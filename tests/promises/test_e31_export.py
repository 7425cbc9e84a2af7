"""E31: torch.export takes constrained modules, and released copies can be exported to ONNX."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal as torch_orthogonal
from torch.testing import assert_close

from constrained import constrain, release
from tests.promises.catalogue import Everything, every_constraint, linear

torch_today = pytest.mark.torch_today
# The exporters warn about their own code.
quiet = pytest.mark.filterwarnings("ignore")


def network():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 8))
    constrain(
        model,
        {
            "0.weight": {"name": "spectral_norm", "view": "o i h w -> o (i h w)"},
            "2.weight": "low_rank(rank=2)",
            "3.weight": "orthogonal",
        },
    )
    return model.eval(), torch.randn(2, 1, 6, 6)


def run_onnx(content, x):
    session = pytest.importorskip("onnxruntime").InferenceSession(
        content, providers=["CPUExecutionProvider"]
    )
    (given,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {given.name: x.numpy()})[0])


def to_onnx(model, x, dynamo):
    """The bytes of the exported model."""
    if dynamo:
        pytest.importorskip("onnxscript")
        return torch.onnx.export(
            model, (x,), dynamo=True, verbose=False
        ).model_proto.SerializeToString()
    content = io.BytesIO()
    torch.onnx.export(model, (x,), content, dynamo=False)
    return content.getvalue()


# torch 2.6 warns about its own graph, which is right.
@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning")
@pytest.mark.filterwarnings("ignore:Node .* does not reference an nn.Module:UserWarning")
@pytest.mark.parametrize("strict", [pytest.param(True, marks=pytest.mark.slow), False])
@every_constraint((4, 4))
def test_e31_torch_export(name, arguments, shape, strict):
    model = linear(name, arguments, shape)
    x = torch.randn(3, model.in_features)
    program = torch.export.export(model, (x,), strict=strict)
    keys = {key for key in program.state_dict if "original" in key}
    assert keys and keys <= set(model.state_dict())
    assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("strict", [True, False])
def test_e31_torch_export_of_a_network(strict):
    model, x = network()
    for exported in (model, release(copy.deepcopy(model))):
        program = torch.export.export(exported, (x,), strict=strict)
        content = io.BytesIO()
        torch.export.save(program, content)
        content.seek(0)
        assert_close(torch.export.load(content).module()(x), model(x))


def test_e31_an_exported_program_follows_its_parameters():
    model = linear("orthogonal", {}, (4, 4))
    program = torch.export.export(model, (torch.ones(4, 4),)).module()
    state = {key: value + 0.1 for key, value in model.state_dict().items()}
    model.load_state_dict(state)
    program.load_state_dict(state)
    assert_close(program(torch.eye(4)), model(torch.eye(4)))


@quiet
@pytest.mark.parametrize("dynamo", [True, False])
def test_e31_onnx_of_a_released_copy(dynamo, measured):
    model, x = network()
    expected = model(x).detach()
    plain = release(copy.deepcopy(model))
    difference = (run_onnx(to_onnx(plain, x, dynamo), x) - expected).abs().max()
    assert difference <= 1e-5
    assert torch.equal(model(x), expected)
    measured(f"released: {difference:.0e} off")


@quiet
@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False])
def test_e31_onnx_of_the_whole_catalogue_released(dynamo):
    model = Everything().eval()
    x = torch.randn(2, 100)
    expected = model(x).detach()
    content = to_onnx(release(copy.deepcopy(model)), x, dynamo)
    assert_close(run_onnx(content, x), expected, rtol=1e-4, atol=1e-4)


@quiet
@pytest.mark.parametrize("name", ["positive_definite", "sphere", "low_rank(rank=2)", "positive"])
def test_e31_onnx_of_a_constrained_module_of_plain_operators(name):
    model = constrain(nn.Linear(4, 4), "weight", name).eval()
    x = torch.randn(2, 4)
    assert_close(run_onnx(to_onnx(model, x, dynamo=True), x), model(x).detach())


@quiet
@pytest.mark.parametrize("name", ["orthogonal", "spectral_norm"])
def test_e31_onnx_has_no_operator_for_a_polar_factor(name):
    """The error names the operator; a released copy does not need it."""
    model = constrain(nn.Linear(4, 4), "weight", name).eval()
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        to_onnx(model, torch.randn(2, 4), dynamo=True)
    assert "torch.ops.constraints." in str(caught.value.__cause__ or caught.value)
    x, expected = torch.eye(4), model(torch.eye(4)).detach()
    assert_close(run_onnx(to_onnx(release(model), x, dynamo=True), x), expected)


@torch_today
@quiet
def test_e31_in_torch_today(measured):
    model = torch_orthogonal(nn.Linear(4, 4)).eval()
    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError) as caught:
        to_onnx(model, torch.randn(2, 4), dynamo=False)
    reason = str(caught.value).split("operator ")[1].split(" ")[0]
    assert reason in ("'aten::mT'", "'aten::mH'")
    measured(f"no {reason}")
