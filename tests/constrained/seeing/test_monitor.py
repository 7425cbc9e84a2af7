"""`Monitor`: what it reads, where it writes, and that training is the same without it."""

import copy
import csv
import io
import math

import pytest
import torch
from torch import nn

from constrained import (
    Constraint,
    Monitor,
    baked_state_dict,
    constrain,
    get,
    names,
    parametrize,
    report,
    violations,
)
from constrained.seeing.reading import Reading
from constrained.seeing.sinks import Record, read_csv, summary

CONSTRAINTS = {
    "0.weight": "orthogonal",
    "2.weight": "spectral_norm(bound=0.5)",
    "4.weight": "low_rank(rank=2)",
    "4.bias": "simplex",
}


def network(dtype=torch.float32):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    return constrain(layers.to(dtype), CONSTRAINTS)


def data(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 8, generator=generator).to(dtype)
    return x, x.roll(1, 1)


def train(model, steps=12, kind=torch.optim.Adam, hook=None, call=None, **settings):
    optimizer = kind(model.parameters(), lr=0.05, **settings)
    if hook is not None:
        optimizer.register_step_post_hook(hook)
    x, y = data(next(model.parameters()).dtype)
    for step in range(steps):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        if call is not None:
            call(step)
        optimizer.step()
    return model


# ------------------------------------------------------------------------------ what it reads


def test_what_is_read_agrees_with_a_report():
    model = network()
    start = baked_state_dict(model)
    monitor = Monitor(model)
    train(model, call=monitor)
    record = monitor.record(12)
    assert list(record.tensors) == list(CONSTRAINTS)
    rows = {row.path: row for row in report(model, start=start).rows}
    for path, reading in record.tensors.items():
        assert reading.violation == violations(model)[path]
        assert reading.tolerance == rows[path].tolerance
        assert reading.drift == pytest.approx(rows[path].drift, rel=1e-6) and reading.drift > 0
        assert reading.condition == rows[path].condition
    assert report(model, start=monitor.start).rows[0].drift == pytest.approx(rows["0.weight"].drift)
    assert record.tensors["4.bias"].sigma_max is None
    s = torch.linalg.svdvals(model[2].weight.detach())
    assert record.tensors["2.weight"].sigma_max == pytest.approx(float(s[0]))
    assert record.tensors["2.weight"].sigma_min == pytest.approx(float(s[-1]))


def test_the_gradient_of_an_orthogonal_matrix_is_the_riemannian_one():
    model = constrain(nn.Linear(4, 4).double(), "weight", "orthogonal")
    G = torch.randn(4, 4, dtype=torch.float64)
    (model.weight * G).sum().backward()
    monitor = Monitor(model)
    monitor()
    W = model.weight.detach()
    S = W.T @ G
    tangent = G - W @ (S + S.T) / 2
    found = monitor.records[0].tensors["weight"].gradient_norm
    assert found == pytest.approx(float(tangent.norm()), rel=1e-10)


def test_the_gradient_is_the_speed_of_the_value():
    model = constrain(nn.Linear(3, 2).double(), "weight", "positive", init="sample")
    (model.weight.square().sum()).backward()
    (original,) = model.parametrizations.weight.parameters()
    J = torch.sigmoid(original.detach())
    monitor = Monitor(model)
    monitor()
    found = monitor.records[0].tensors["weight"].gradient_norm
    assert found == pytest.approx(float((J * original.grad).norm()), rel=1e-12)
    h = 1e-6
    before = model.weight.detach().clone()
    with torch.no_grad():
        original -= h * original.grad
    moved = float((model.weight.detach() - before).norm()) / h
    assert found == pytest.approx(moved, rel=1e-4)


def test_it_vanishes_at_an_optimum_and_is_none_without_gradients():
    model = constrain(nn.Linear(4, 4).double(), "weight", "orthogonal")
    monitor = Monitor(model)
    monitor()
    assert monitor.records[0].tensors["weight"].gradient_norm is None
    (model.weight - model.weight.detach() * 3).square().sum().backward()
    monitor()
    assert monitor.records[1].tensors["weight"].gradient_norm < 1e-12


@pytest.mark.parametrize("name", names())
def test_every_entry_of_the_catalogue_has_a_gradient(name):
    cls = get(name)
    for kwargs, event in cls.examples:
        module = nn.Module()
        constraint = cls(**kwargs)
        value = constraint.sample(event, generator=torch.Generator().manual_seed(0))
        module.x = nn.Parameter(value)
        constrain(module, "x", constraint)
        module.x.abs().square().sum().backward()
        monitor = Monitor(module)
        monitor()
        (reading,) = monitor.records[0].tensors.values()
        assert math.isfinite(reading.gradient_norm)
        assert reading.violation <= reading.tolerance


def test_constants_and_parts_without_a_gradient():
    model = constrain(nn.Linear(4, 4), "weight", "orthogonal(map='cayley')")
    model.weight.sum().backward()
    monitor = Monitor(model)
    monitor()
    assert monitor.records[0].tensors["weight"].gradient_norm > 0


def test_half_precision_is_read():
    model = network(torch.bfloat16)
    monitor = Monitor(model)
    train(model, 2, call=monitor)
    assert all(math.isfinite(r.gradient_norm) for r in monitor.records[-1].tensors.values())


def test_nan_is_told():
    model = network()
    monitor = Monitor(model)
    train(model, 1)
    with torch.no_grad():
        model[0].parametrizations.weight.original[0, 0] = math.nan
    reading = monitor.record(1).tensors["0.weight"]
    assert reading.violation == math.inf
    for number in (reading.drift, reading.sigma_max, reading.condition, reading.gradient_norm):
        assert math.isnan(number)
    model = network()
    train(model, 1)
    model[2].parametrizations.weight.original.grad[0, 0] = math.nan
    reading = Monitor(model).record(1).tensors["2.weight"]
    assert math.isnan(reading.gradient_norm) and reading.violation <= reading.tolerance


@pytest.mark.parametrize("spec", ["invertible", "hurwitz", "positive_definite", "correlation"])
def test_nan_in_every_entry_is_told(spec):
    model = constrain(nn.Linear(4, 4, bias=False), "weight", spec)
    monitor = Monitor(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
            parameter.grad = torch.ones_like(parameter)
    reading = monitor.record(1).tensors["weight"]
    assert reading.violation == math.inf and math.isnan(reading.gradient_norm)


def test_numbers_too_large_to_compute_with_are_told():
    model = constrain(nn.Linear(4, 4, bias=False), "weight", "orthogonal")
    monitor = Monitor(model)
    with torch.no_grad():
        model.parametrizations.weight.original.fill_(torch.finfo(torch.float32).max)
    assert monitor.record(1).tensors["weight"].violation > 0


def test_a_model_without_numbers():
    with torch.device("meta"):
        model = network()
    reading = Monitor(model).record(0).tensors["0.weight"]
    assert math.isnan(reading.violation) and math.isnan(reading.drift)


def test_tensors_that_are_constrained_later_and_released():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    monitor = Monitor(model)
    assert monitor.record(0).tensors == {}
    constrain(model, "0.weight", "orthogonal")
    assert list(monitor.record(1).tensors) == ["0.weight"]
    model[0] = constrain(nn.Linear(5, 5), "weight", "sphere")
    reading = monitor.record(2).tensors["0.weight"]
    assert reading.drift is None and reading.violation < 1e-6


class Noisy(get("ball")):
    deterministic = False

    def forward(self, y):
        return super().forward(y + torch.randn_like(y))


@pytest.mark.parametrize("constraint", [Noisy(), "module"])
def test_what_may_change_when_it_is_evaluated_is_not_read(constraint):
    layer = nn.Linear(3, 3)
    if constraint == "module":
        parametrize.register_parametrization(layer, "weight", nn.Dropout(0.5))
        assert Monitor(layer).record(0).tensors == {}
        parametrize.register_parametrization(layer, "weight", get("ball")())
    else:
        constrain(layer, "weight", constraint)
    state = torch.random.get_rng_state()
    with pytest.warns(RuntimeWarning, match="'weight' is not monitored"):
        monitor = Monitor(layer)
    assert monitor.record(1).tensors == {}
    assert torch.equal(torch.random.get_rng_state(), state)


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


class WithoutForwardMode(Constraint):
    event_dim = 0

    def forward(self, x):
        return Doubled.apply(x)

    def right_inverse(self, value):
        return value / 2

    def violation(self, value):
        return torch.zeros_like(value)

    def project(self, value):
        return value

    def draw(self, shape, random):
        return random.normal(shape)


def test_a_map_without_a_forward_derivative():
    layer = constrain(nn.Linear(3, 3), "weight", WithoutForwardMode())
    layer.weight.sum().backward()
    monitor = Monitor(layer)
    with pytest.warns(RuntimeWarning, match="'weight' is not monitored.*no forward derivative"):
        reading = monitor.record(0).tensors["weight"]
    assert reading.gradient_norm is None and reading.violation == 0


# ------------------------------------------------------------------------- training is the same


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("place", ["before", "after", "both"])
@pytest.mark.parametrize(
    "kind, settings",
    [(torch.optim.Adam, {}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.AdamW, {})],
)
def test_training_is_the_same_bit_for_bit(kind, settings, place):
    one, other = network(), network()
    state = torch.random.get_rng_state()
    train(one, kind=kind, **settings)
    monitor = Monitor(other)
    assert torch.equal(torch.random.get_rng_state(), state)
    train(
        other,
        kind=kind,
        hook=monitor if place != "before" else None,
        call=monitor if place != "after" else None,
        **settings,
    )
    assert len(monitor.records) >= 10
    assert torch.equal(torch.random.get_rng_state(), state)
    for mine, theirs in zip(weights(one), weights(other), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", names())
def test_training_each_entry_is_the_same_bit_for_bit(name):
    cls = get(name)
    for kwargs, event in cls.examples[:3]:

        def model(kwargs=kwargs, event=event):
            constraint = cls(**kwargs)
            module = nn.Module()
            module.x = nn.Parameter(
                constraint.sample((2, *event), generator=torch.Generator().manual_seed(0))
                if constraint.event_dim is not None
                else constraint.sample(event, generator=torch.Generator().manual_seed(0))
            )
            return constrain(module, "x", constraint)

        def run(module, monitored):
            optimizer = torch.optim.Adam(module.parameters(), lr=0.03)
            monitor = Monitor(module) if monitored else None
            target = torch.randn(module.x.shape, generator=torch.Generator().manual_seed(1))
            for step in range(6):
                optimizer.zero_grad()
                (module.x - target).abs().square().sum().backward()
                if monitor:
                    monitor(step)
                optimizer.step()
                if monitor:
                    monitor.record(step + 100)
            return weights(module)

        for mine, theirs in zip(run(model(), False), run(model(), True), strict=True):
            assert torch.equal(mine, theirs)


def test_stored_values_and_gradients_stay():
    model = network()
    x, _ = data()
    model(x).sum().backward()
    values = [model[i].weight for i in (0, 2, 4)]
    gradients = [p.grad for p in model.parameters()]
    copies = [g.clone() for g in gradients]
    Monitor(model).record(0)
    assert all(model[i].weight is value for i, value in zip((0, 2, 4), values, strict=True))
    for parameter, gradient, copied in zip(model.parameters(), gradients, copies, strict=True):
        assert parameter.grad is gradient and torch.equal(gradient, copied)
    assert model.training


def test_it_reads_as_often_as_it_says():
    seen = []
    layer = constrain(nn.Linear(4, 4), "weight", "sphere")
    monitor = Monitor(layer, every=5)
    layer.parametrizations.weight[0].register_forward_hook(lambda *_: seen.append(1))
    for step in range(20):
        monitor(step)
    # The value each time, and no forward derivative without a gradient.
    assert len(seen) == 4
    assert [record.step for record in monitor.records] == [0, 5, 10, 15]


def test_hooks_count_steps():
    model = network()
    monitor = Monitor(model, every=3)
    train(model, 7, hook=monitor)
    assert [record.step for record in monitor.records] == [3, 6]
    counted = Monitor(model, every=2)
    for _ in range(5):
        counted()
    assert [record.step for record in counted.records] == [2, 4]
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    first = Monitor(model)
    optimizer.register_step_pre_hook(first)
    optimizer.step()
    assert [record.step for record in first.records] == [1]


def test_it_may_be_called_without_gradient_recording():
    model = network()
    train(model, 1)
    outside, inside = Monitor(model).record(0), None
    with torch.no_grad():
        inside = Monitor(model).record(0)
    assert inside == outside


def test_a_monitor_is_copied_with_its_model():
    twin = copy.deepcopy(Monitor(network()))
    train(twin.model, 2, call=twin)
    assert len(twin.records) == 2


# ------------------------------------------------------------------------------ where it writes


def test_a_csv_file(tmp_path):
    path = tmp_path / "runs" / "log.csv"
    model = network()
    monitor = Monitor(model, to=path)
    train(model, 3, call=monitor)
    with torch.no_grad():
        model[0].parametrizations.weight.original[0, 0] = math.nan
    monitor(3)
    lines = list(csv.DictReader(path.read_text().splitlines()))
    assert len(lines) == 4 * 4 and lines[0]["tensor"] == "0.weight"
    assert lines[-4]["violation"] == "inf" and lines[-4]["drift"] == "nan"
    assert lines[3]["condition"] == ""
    again = read_csv(path)
    assert [r.step for r in again] == [0, 1, 2, 3]
    assert again[:3] == monitor.records[:3]
    assert math.isnan(again[3].tensors["0.weight"].drift)


def test_a_csv_file_is_continued(tmp_path):
    path = tmp_path / "log.csv"
    model = network()
    Monitor(model, to=str(path)).record(0)
    Monitor(model, to=path).record(1)
    assert [record.step for record in read_csv(path)] == [0, 1]
    assert path.read_text().count("tensor,") == 1


def test_files_of_another_kind(tmp_path):
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"other.csv' was not written by a monitor: .*'a,b'"):
        Monitor(network(), to=path)
    with pytest.raises(ValueError, match="was not written by a monitor"):
        read_csv(path)
    path.write_bytes(b"\xff\xfe\0" * 100_000)
    for read in (read_csv, lambda path: Monitor(network(), to=path)):
        with pytest.raises(
            ValueError, match=r"other.csv' was not written by a monitor: "
        ) as caught:
            read(path)
        assert len(str(caught.value)) < 700
    with pytest.raises(ValueError, match="is a folder"):
        Monitor(network(), to=tmp_path)
    with pytest.raises(FileNotFoundError):
        read_csv(tmp_path / "none.csv")
    path = tmp_path / "log.csv"
    Monitor(network(), to=path).record(0)
    path.write_text(path.read_text() + "1,fc.weight,zero\n")
    with pytest.raises(ValueError, match="Line 6 of .*'1,fc.weight,zero'"):
        read_csv(path)


class Writer:
    def __init__(self):
        self.written = []

    def add_scalar(self, name, number, step):
        self.written.append((name, number, step))


class Logger:
    def __init__(self):
        self.written = []

    def log_metrics(self, metrics, step):
        self.written.append((metrics, step))


def test_writers_loggers_and_functions():
    writer, logger, called = Writer(), Logger(), []
    model = network()
    monitor = Monitor(model, to=[writer, logger, lambda step, m: called.append((step, m))])
    monitor(7)
    (record,) = monitor.records
    metrics = record.metrics()
    assert called == [(7, metrics)] and logger.written == [(metrics, 7)]
    assert writer.written == [(name, number, 7) for name, number in metrics.items()]
    assert metrics["constrained/violation"] == max(violations(model).values())
    assert metrics["constrained/drift/0.weight"] == 0
    assert "constrained/condition/4.bias" not in metrics
    assert all(isinstance(number, float) for number in metrics.values())


def test_metrics_hold_nan():
    reading = Reading(violation=math.inf, tolerance=0.0, drift=math.nan)
    metrics = Record(3, {"w": reading}).metrics()
    assert metrics["constrained/violation"] == math.inf
    assert math.isnan(metrics["constrained/drift/w"])


@pytest.mark.parametrize("to", [3, object(), [None, 4]])
def test_what_cannot_be_written_to(to):
    with pytest.raises(TypeError, match="A monitor writes to the path of a CSV file"):
        Monitor(network(), to=to)


@pytest.mark.parametrize("every", [0, -1, 2.5, True, "10"])
def test_every_is_a_number_of_steps(every):
    with pytest.raises(ValueError, match="every must be a whole number of steps"):
        Monitor(network(), every=every)


@pytest.mark.parametrize("step", ["one", float("nan"), float("inf"), [1]])
def test_a_step_is_a_whole_number(step):
    monitor = Monitor(network())
    with pytest.raises(TypeError, match="The step of a monitor is a whole number, got"):
        monitor(step)
    assert monitor.records == []


def test_a_model_is_a_module():
    with pytest.raises(TypeError, match="A model is a torch.nn.Module"):
        Monitor("model")


def test_the_progress_line(monkeypatch, capsys):
    model = network()
    monitor = Monitor(model, progress=True)
    train(model, 2, call=monitor)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[1].startswith("step 1  violation ") and "(holds) in " in lines[1]
    assert "gradient norm" in summary(monitor.records[1])
    with torch.no_grad():
        model[0].parametrizations.weight.original[0, 0] = math.nan
    monitor(2)
    assert "violation inf (DOES NOT HOLD) in 0.weight  drift nan" in capsys.readouterr().err
    assert summary(Record(0, {})) == "step 0"


def test_the_progress_line_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monitor = Monitor(network(), progress=True)
    monitor(0)
    monitor(1)
    assert "\n" not in terminal.getvalue()
    for line in terminal.getvalue().split("\r")[:-1]:
        assert len(line) < 40


def test_without_spectrum_and_drift():
    model = network()
    (reading, *_) = Monitor(model, spectrum=False, drift=False).record(0).tensors.values()
    assert reading.sigma_max is None and reading.condition is None and reading.drift is None
    assert Monitor(model, drift=False).start == {}


def test_other_libraries_are_not_imported_for_it():
    import sys

    from constrained import seeing

    assert "lightning" not in sys.modules and "transformers" not in sys.modules
    with pytest.raises(ImportError, match="Lightning, which is not installed: pip install light"):
        seeing.LightningMonitor  # noqa: B018
    with pytest.raises(ImportError, match="Trainer of transformers, which is not installed"):
        seeing.TransformersMonitor  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'KerasMonitor'"):
        seeing.KerasMonitor  # noqa: B018


# --------------------------------------------------------------------- sharded and compiled models


@pytest.fixture
def group(tmp_path):
    """This process as a group of its own."""
    where = f"file://{tmp_path}/store"
    torch.distributed.init_process_group("gloo", init_method=where, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.skipif(
    not hasattr(torch.cpu.current_stream(), "record_event"),
    reason="this version of torch has FSDP2 for GPUs alone",
)
def test_a_sharded_model_is_read_and_trains_the_same(group):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    one, other = (fully_shard(network(), mesh=mesh) for _ in range(2))
    monitor = Monitor(other)
    train(one)
    train(other, call=monitor)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine.full_tensor(), theirs.full_tensor())
    reading = monitor.records[-1].tensors["0.weight"]
    assert reading.violation <= reading.tolerance and reading.gradient_norm > 0


@pytest.mark.slow
def test_a_compiled_model_is_read_and_trains_the_same():
    one, other = (torch.compile(network(), backend="aot_eager") for _ in range(2))
    monitor = Monitor(other)
    train(one)
    train(other, call=monitor)
    for mine, theirs in zip(weights(one), weights(other), strict=True):
        assert torch.equal(mine, theirs)
    reading = monitor.records[-1].tensors["_orig_mod.0.weight"]
    assert reading.violation <= reading.tolerance and reading.gradient_norm > 0
