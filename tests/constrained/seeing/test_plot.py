"""`constrained.plot`: what the pictures show, and what is told of wrong input."""

import math
import subprocess
import sys

import matplotlib
import numpy
import pytest
import torch
from torch import nn

matplotlib.use("agg")

from matplotlib import pyplot

from constrained import Monitor, constrain, get, names, plot
from constrained.seeing.allowed import allowed_eigenvalues, allowed_range


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


def layer(spec, rows=6, columns=6, **keywords):
    return constrain(nn.Linear(columns, rows, bias=False), "weight", spec, **keywords)


def points(ax):
    """The points of all lines and collections in a picture."""
    lines = [line.get_xydata() for line in ax.lines]
    return [torch.as_tensor(line.copy()).double() for line in lines if len(line)]


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def drawn(ax):
    """Draw the picture, so that everything in it is laid out."""
    ax.figure.canvas.draw()
    return ax


def overlapping(ax):
    """Pairs of texts in a picture that are printed over each other."""
    drawn(ax)
    texts = [ax.title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    if ax.get_legend():
        texts += ax.get_legend().get_texts()
    inside = [t for t in texts if t.get_text() and t.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in inside]
    return [
        (one, other)
        for i, (one, a) in enumerate(boxes)
        for other, b in boxes[i + 1 :]
        if a.width and b.width and a.overlaps(b)
    ]


# ------------------------------------------------------------------------------ what they show


def test_a_spectrum_and_its_set():
    model = layer("spectral_norm(bound=0.25)", 8, 8)
    ax = plot.spectrum(model, "weight")
    (line,) = points(ax)
    s = torch.linalg.svdvals(model.weight.detach().double())
    torch.testing.assert_close(line[:, 1], s, rtol=1e-5, atol=1e-6)
    assert line[:, 0].tolist() == list(range(1, 9))
    assert labels(ax) == ["the set: 0 to 0.25"]
    assert ax.get_title() == "weight: spectral_norm(bound=0.25)"
    assert not overlapping(ax)


def test_eigenvalues_of_symmetric_matrices():
    model = layer("positive_definite")
    ax = plot.spectrum(model)
    torch.testing.assert_close(
        points(ax)[0][:, 1], torch.linalg.eigvalsh(model.weight.detach().double()).flip(-1)
    )
    assert ax.get_ylabel() == "eigenvalue" and labels(ax) == ["the set: above 0"]


@pytest.mark.parametrize(
    "spec, shape, expected",
    [
        ("orthogonal", (6, 4), (1, 1)),
        ("special_orthogonal", (5, 5), (1, 1)),
        ("unitary", (4, 4), (1, 1)),
        ("spectral_norm(bound=3)", (5, 7), (0, 3)),
        ("singular_values(low=1.1, high=1.2)", (5, 7), (1.1, 1.2)),
        ("almost_orthogonal(radius=0.01)", (5, 5), (0.99, 1.01)),
        ("invertible", (4, 4), (0, math.inf)),
        ("invertible(sign=1)", (4, 4), (0, math.inf)),
        ("positive_definite", (4, 4), (0, math.inf)),
        ("positive_semidefinite", (4, 4), (0, math.inf)),
        ("symmetric", (4, 4), (-math.inf, math.inf)),
        ("symmetric | spectral_norm(bound=2)", (4, 4), (-2, 2)),
        ("low_rank(rank=2)", (5, 5), None),
        ("special_linear", (4, 4), None),
        ("frobenius_norm(radius=2)", (4, 4), None),
        ("correlation", (4, 4), None),
        ("row_stochastic", (4, 4), None),
        ("doubly_stochastic", (4, 4), None),
        ("schur", (4, 4), None),
        ("psd_fixed_rank(rank=2)", (4, 4), None),
    ],
)
def test_the_interval_that_a_set_allows(spec, shape, expected):
    from constrained.constraint.spec import parse

    constraint = parse(spec).build()
    generator = torch.Generator().manual_seed(0)
    for value in (constraint.sample(shape, generator=generator, dtype=torch.float64),):
        symmetric = shape[0] == shape[1] and torch.allclose(value, value.mT)
        of = torch.linalg.eigvalsh if symmetric else torch.linalg.svdvals
        found = allowed_range(constraint, of(value), shape, symmetric=symmetric)
        assert found == (expected and pytest.approx(expected, rel=1e-5, abs=1e-5))


@pytest.mark.parametrize("start", ["eye", "sample"])
@pytest.mark.parametrize("name", ["special_linear", "frobenius_norm", "traceless", "schur"])
def test_numbers_that_are_bound_together_have_no_interval(name, start):
    constraint = get(name)()
    known = torch.ones(4, dtype=torch.float64)
    if start == "sample":
        known = torch.linalg.svdvals(constraint.sample((4, 4), dtype=torch.float64))
    assert allowed_range(constraint, known, (4, 4), symmetric=False) is None


def test_the_identity_is_no_typical_correlation_matrix():
    known = torch.ones(4, dtype=torch.float64)
    assert allowed_range(get("correlation")(), known, (4, 4), symmetric=True) is None


def test_many_matrices_have_a_line_each():
    ax = plot.spectrum(torch.randn(3, 5, 4), "spectral_norm")
    assert len(points(ax)) == 3 and "3 matrices" in labels(ax)


def test_a_view_shows_the_matrix_that_is_seen():
    model = constrain(nn.Conv2d(3, 8, 3), "weight", "orthogonal", view="o i h w -> o (i h w)")
    torch.testing.assert_close(
        points(plot.spectrum(model))[0][:, 1], torch.ones(8, dtype=torch.float64)
    )


@pytest.mark.parametrize("spec, inside, outside", [
    ("schur(radius=0.5)", [0.4, 0.3 + 0.3j, -0.49j], [0.6, 0.5 + 0.1j]),
    ("hurwitz(alpha=0.5)", [-0.6, -1 + 3j], [-0.4, 1, 2j]),
])  # fmt: skip
def test_the_region_of_eigenvalues(spec, inside, outside):
    from constrained.constraint.spec import parse

    constraint = parse(spec).build()
    assert (allowed_eigenvalues(constraint, torch.tensor(inside)) >= 0).all()
    assert (allowed_eigenvalues(constraint, torch.tensor(outside)) < 0).all()


@pytest.mark.parametrize("spec", ["schur(radius=0.9)", "hurwitz", "orthogonal", "row_stochastic"])
def test_eigenvalues_in_the_plane(spec):
    model = layer(spec, 8, 8, init="sample")
    ax = plot.eigenvalues(model)
    (scatter,) = (c for c in ax.collections if len(c.get_offsets()) == 8)
    found = torch.view_as_complex(torch.as_tensor(scatter.get_offsets().data.copy()))
    expected = torch.linalg.eigvals(model.weight.detach().double())
    for value in expected:
        assert float((found - value).abs().min()) < 1e-12
    assert ("the set" in labels(ax)) == (spec in ("schur(radius=0.9)", "hurwitz"))
    assert not overlapping(ax)


def test_a_simplex():
    ax = plot.simplex(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1 / 3, 1 / 3, 1 / 3]]))
    (scatter,) = ax.collections
    expected = torch.tensor([[0.0, 0.0], [0.5, 3**0.5 / 2], [0.5, 3**0.5 / 6]])
    torch.testing.assert_close(torch.as_tensor(scatter.get_offsets().data).float(), expected)
    assert not overlapping(ax)
    outside = plot.simplex(torch.tensor([3.0, -1.0, -1.0]))
    assert outside.get_xlim()[0] < -1.5 + 0.5


def test_a_sphere():
    model = layer("sphere(radius=2)", 40, 3)
    ax = drawn(plot.sphere(model))
    assert ax.get_xlim()[1] > 2 and ax.name == "3d"
    scatter = next(c for c in ax.collections if hasattr(c, "_offsets3d"))
    torch.testing.assert_close(
        torch.stack([torch.as_tensor(numpy.array(o)) for o in scatter._offsets3d], -1).norm(dim=-1),
        torch.full((40,), 2.0, dtype=torch.float64),
        check_dtype=False,
        rtol=1e-5,
        atol=0,
    )


def monitored(path=None, count=3, broken=False):
    net = nn.Sequential(*(nn.Linear(3, 3) for _ in range(count)))
    constrain(net, "*.weight", "orthogonal")
    monitor = Monitor(net, to=path)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(5):
        optimizer.zero_grad()
        net(torch.ones(2, 3)).square().sum().backward()
        monitor(step)
        optimizer.step()
    if broken:
        with torch.no_grad():
            net[0].parametrizations.weight.original[0, 0] = math.nan
        monitor(5)
    return monitor


@pytest.mark.parametrize("quantity", ["violation", "drift", "condition", "gradient_norm"])
def test_a_history_from_a_monitor_and_from_its_file(quantity, tmp_path):
    monitor = monitored(tmp_path / "log.csv")
    one, other = (plot.history(s, quantity) for s in (monitor, tmp_path / "log.csv"))
    assert labels(one) == labels(other) and set(labels(one)) >= {"0.weight", "1.weight"}
    for mine, theirs in zip(points(one), points(other), strict=True):
        assert torch.equal(mine, theirs)
    line = next(line for line in one.lines if line.get_label() == "1.weight")
    expected = [getattr(r.tensors["1.weight"], quantity) for r in monitor.records]
    assert list(line.get_ydata()) == expected
    assert one.get_ylabel() == quantity.replace("_", " ")
    assert not overlapping(one)


def test_numbers_that_are_not_finite_are_marked():
    ax = plot.history(monitored(broken=True))
    (mark,) = (line for line in ax.lines if line.get_label() == "NaN or infinite")
    assert list(mark.get_xdata()) == [5]
    # The broken tensor comes first.
    assert labels(ax)[0] == "0.weight"


def test_many_tensors_share_a_colour():
    ax = plot.history(monitored(count=12), "drift")
    assert "4 others" in labels(ax) and len(labels(ax)) == 9


def test_a_history_of_zeros_alone():
    model = constrain(nn.Linear(3, 3), "weight", "positive", init="sample")
    monitor = Monitor(model)
    monitor()
    assert not overlapping(plot.history(monitor))


def test_axes_may_be_given():
    _, (one, other) = pyplot.subplots(1, 2)
    assert plot.spectrum(layer("orthogonal"), ax=one) is one
    assert plot.history(monitored(), ax=other) is other
    assert len(pyplot.get_fignums()) == 1 and one.lines and other.lines
    with pytest.raises(ValueError, match='projection="3d"'):
        plot.sphere(torch.eye(3), ax=one)


@pytest.mark.parametrize("name", names())
def test_every_set_of_matrices_has_a_spectrum(name):
    cls = get(name)
    for kwargs, event in cls.examples[:2]:
        constraint = cls(**kwargs)
        value = constraint.sample(event, generator=torch.Generator().manual_seed(0))
        if constraint.event_dim == 2:
            drawn(plot.spectrum(value, constraint))
        else:
            with pytest.raises(ValueError, match=r"the elements of .* are no matrices"):
                plot.spectrum(value, constraint)


# -------------------------------------------------------------------------------- wrong input


def test_what_cannot_be_drawn():
    model = constrain(nn.Linear(4, 4), {"weight": "orthogonal", "bias": "positive"})
    with pytest.raises(ValueError, match="no path is given: Linear has 'weight', 'bias'"):
        plot.spectrum(model)
    with pytest.raises(ValueError, match="there is no constrained tensor 'wait': Linear has"):
        plot.spectrum(model, "wait")
    with pytest.raises(ValueError, match="Linear has none"):
        plot.spectrum(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"elements of bias: positive\(\) are no matrices"):
        plot.spectrum(model, "bias")
    with pytest.raises(TypeError, match="A picture is of a model or a tensor, got list"):
        plot.spectrum([1, 2])
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        plot.spectrum(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match="is empty"):
        plot.spectrum(torch.empty(0, 2, 2))
    with pytest.raises(ValueError, match="has no numbers"):
        plot.spectrum(torch.empty(2, 2, device="meta"))
    with pytest.raises(ValueError, match="matrices of 2 x 3, not square ones"):
        plot.eigenvalues(torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"must have 3 real entries, but its shape is \(4,\)"):
        plot.simplex(torch.ones(4))
    with pytest.raises(ValueError, match="quantity must be one of violation, .*got 'loss'"):
        plot.history(monitored(), "loss")
    with pytest.raises(ValueError, match="the violation of no tensor was read"):
        plot.history([])
    with pytest.raises(FileNotFoundError):
        plot.history("none.csv")
    for source in (None, 3, [3], {1: 2}):
        with pytest.raises(TypeError, match="the source is a Monitor, its records, or the path"):
            plot.history(source)


def test_without_matplotlib():
    code = (
        "import sys, torch, constrained; from torch import nn; "
        "assert 'matplotlib' not in sys.modules; "
        "sys.modules['matplotlib'] = sys.modules['matplotlib.pyplot'] = None\n"
        "try: constrained.plot.spectrum(torch.eye(3))\n"
        "except ImportError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == (
        "constrained.plot draws with matplotlib, which is not installed: "
        "pip install 'constrained-layers[plot]'."
    )
