"""Draws docs/catalogue/pictures/ from samples of the sets: `make catalogue`."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from constrained import Constraint, get, names
from constrained.seeing.allowed import allowed_range

FOLDER = Path(__file__).with_name("catalogue") / "pictures"

SET, PALE, GRAY, SECOND = "#1f6f8b", "#d7e6ec", "#9aa0a6", "#c2553d"

#: One picture: it draws into the axes that it makes in a figure.
Draw = Callable[[Any, str], None]


def pictures() -> dict[str, tuple[Draw, str]]:
    """For each set of the catalogue, what draws it, and what is to be seen."""
    ours = [name for name in names() if get(name).__module__.partition(".")[0] == "constraints"]
    return {name: CHOSEN.get(name) or USUAL[of(name).event_dim or 0] for name in ours}


def captions() -> dict[str, str]:
    """For each set, what is to be seen on its picture."""
    return {name: caption for name, (_, caption) in pictures().items()}


def figure(name: str) -> Any:
    """The picture of a set, as a figure of matplotlib."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    draw, _ = pictures()[name]
    with rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        made = Figure(figsize=(3.0, 2.5), layout="constrained")
        draw(made, name)
        made.draw_without_rendering()
    return made


def save(name: str, folder: Path = FOLDER) -> Path:
    """Write the picture of a set, with a palette of 96 colours, which keeps the file small."""
    from PIL import Image

    drawn = io.BytesIO()
    figure(name).savefig(drawn, format="png", dpi=200)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    Image.open(drawn).convert("RGB").quantize(96, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    return path


def of(name: str, **arguments: Any) -> Constraint:
    """A constraint with these arguments, or else those that the pictures show it with."""
    return get(name)(**{**ARGUMENTS.get(name, {}), **arguments})


#: Where an argument is required, or its default would not be seen.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "affine": {"A": [[1.0, 2.0]], "b": [1.0]},
    "almost_orthogonal": {"radius": 0.3},
    "at_least": {"bound": 1.0},
    "at_most": {"bound": 1.0},
    "banded": {"width": 1},
    "block_diagonal": {"sizes": [3, 2, 4]},
    "box": {"low": -1.0, "high": 2.0},
    "fixed_rank": {"rank": 3},
    "greater_than": {"bound": 1.0},
    "hurwitz": {"alpha": 0.5},
    "interval": {"low": -1.0, "high": 2.0},
    "less_than": {"bound": 1.0},
    "low_rank": {"rank": 3},
    "max_norm": {"bound": 1.5},
    "min_max_norm": {"low": 0.7, "high": 1.5},
    "psd_fixed_rank": {"rank": 1},
    "psd_low_rank": {"rank": 1},
    "singular_values": {"low": 0.5, "high": 1.5},
    "soft_permutation": {"temperature": 0.2},
}


def generator(seed: int = 0) -> torch.Generator:
    """One of its own for each sample, so that pictures do not depend on one another."""
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal entries."""
    return torch.randn(shape, generator=generator(seed))


# Numbers: the map.


def curve(figure: Any, name: str) -> None:
    """The map from the free parameter to the value; the set is shaded."""
    constraint = of(name)
    y = torch.linspace(-5, 5, 1001)
    x = constraint(y)
    axes = figure.subplots()
    values = torch.linspace(-5, 5, 2001)
    inside = values[constraint.violation(values) == 0]
    axes.axhspan(float(inside.min()), float(inside.max()), color=PALE, linewidth=0)
    jumps = (x.diff().abs() > 1).nonzero().flatten() + 1
    for part_y, part_x in zip(y.tensor_split(jumps), x.tensor_split(jumps), strict=True):
        axes.plot(part_y, part_x, color=SET)
    for bound in {float(inside.min()), float(inside.max())} - {-5.0, 5.0}:
        style = "-" if type(constraint).closed else (0, (4, 3))
        axes.axhline(bound, color=GRAY, linewidth=0.8, linestyle=style)
    axes.set(xlim=(-5, 5), ylim=(-5, 5), xlabel="free parameter $y$", ylabel="value $x$")
    axes.set_aspect("equal")


# Vectors of two entries: the plane.


def plane(figure: Any, name: str) -> None:
    """The set, and points outside with their projections."""
    _plane(figure.subplots(), of(name))


def _plane(axes: Any, constraint: Constraint, size: float = 2.4) -> None:
    _region(axes, constraint, size)
    points = 1.6 * gaussian(40, 2, seed=1)
    nearest = constraint.project(points)
    outside = (points - nearest).norm(dim=-1) > 0.02
    for point, to in zip(points[outside], nearest[outside], strict=True):
        axes.plot([point[0], to[0]], [point[1], to[1]], color=GRAY, linewidth=0.6)
    axes.scatter(*points[outside].T, s=6, color=GRAY, zorder=3)
    axes.scatter(*nearest[outside].T, s=6, color=SECOND, zorder=4)
    _square(axes, size)


def _region(axes: Any, constraint: Constraint, size: float) -> None:
    line = torch.linspace(-size, size, 301)
    grid = torch.cartesian_prod(line, line)
    distance = constraint.violation(grid).reshape(301, 301).T
    solid = bool((distance == 0).float().mean() > 0.01)
    if solid:
        axes.contourf(line, line, distance, levels=[-1, 1e-6], colors=[PALE])
        axes.contour(line, line, distance, levels=[1e-3], colors=[SET], linewidths=1.2)
    else:
        thin = constraint.project(grid)
        axes.scatter(*thin.unique(dim=0).T, s=0.6, color=SET, rasterized=True)


def _square(axes: Any, size: float, labels: Sequence[str] = ("$x_1$", "$x_2$")) -> None:
    axes.axhline(0, color=GRAY, linewidth=0.4, zorder=0)
    axes.axvline(0, color=GRAY, linewidth=0.4, zorder=0)
    axes.set(xlim=(-size, size), ylim=(-size, size), xlabel=labels[0], ylabel=labels[1])
    axes.set_aspect("equal")
    axes.locator_params(nbins=5)


def ball(figure: Any, name: str) -> None:
    """The balls of the same radius for p = 1, 2 and 4."""
    from matplotlib.lines import Line2D

    axes = figure.subplots()
    styles = {1.0: (0, (1, 1)), 2.0: "-", 4.0: (0, (4, 2))}
    line = torch.linspace(-1.5, 1.5, 401)
    grid = torch.cartesian_prod(line, line)
    for p, style in styles.items():
        distance = of(name, p=p).violation(grid).reshape(401, 401).T
        if p == 2:
            axes.contourf(line, line, distance, levels=[-1, 1e-6], colors=[PALE])
        axes.contour(line, line, distance, levels=[1e-4], colors=[SET], linestyles=[style])
    handles = [Line2D([], [], color=SET, linestyle=style) for style in styles.values()]
    figure.legend(handles, [f"p = {p:g}" for p in styles], loc="outside right upper", frameon=False)
    _square(axes, 1.5)


def simplex(figure: Any, name: str) -> None:
    """Random elements of three entries: a triangle in space."""
    axes = _space(figure)
    points = of(name).sample((500, 3), generator=generator())
    corners = torch.eye(3)[[0, 1, 2, 0]]
    axes.plot(*corners.T, color=SET, linewidth=1)
    axes.scatter(*points.T, s=3, color=SET, depthshade=False, linewidths=0)
    axes.view_init(elev=28, azim=40)
    _cube(axes, (0, 1), ("$x_1$", "$x_2$", "$x_3$"))


def sphere(figure: Any, name: str) -> None:
    """Random elements of three entries; those at the back are pale."""
    axes = _space(figure)
    points = of(name).sample((700, 3), generator=generator())
    axes.view_init(elev=25, azim=35)
    towards = torch.tensor([math.cos(0.61), math.sin(0.61), 0.47])
    back = points @ towards < 0
    axes.scatter(*points[back].T, s=3, color=PALE, depthshade=False, linewidths=0)
    axes.scatter(*points[~back].T, s=3, color=SET, depthshade=False, linewidths=0)
    _cube(axes, (-1, 1), ("$x_1$", "$x_2$", "$x_3$"))


def polar(figure: Any, name: str) -> None:
    """The image of circles and rays around zero: the free parameters in polar coordinates."""
    from matplotlib.patches import Circle

    constraint = of(name)
    axes = figure.subplots()
    angles = torch.linspace(0, 2 * math.pi, 200)
    lengths = torch.linspace(0, 1.8, 200)
    for length in (0.3, 0.6, 0.9, 1.2, 1.5, 1.8):
        _path(axes, constraint, length * torch.stack([angles.cos(), angles.sin()], -1))
    for angle in torch.linspace(0, 2 * math.pi, 13)[:-1]:
        _path(axes, constraint, lengths[:, None] * torch.stack([angle.cos(), angle.sin()]))
    axes.add_patch(Circle((0, 0), 1, fill=False, color=SECOND, linestyle=(0, (4, 3))))
    _square(axes, 1.1)


def _path(axes: Any, constraint: Constraint, y: Tensor) -> None:
    x = constraint(y)
    axes.plot(*x.T, color=SET, linewidth=0.7)


def lengths(figure: Any, name: str) -> None:
    """Two directions $v$, and the elements for $g$ = 0.5, 1, 1.5 and 2."""
    constraint = of(name, event_dim=1, dim=None)
    axes = figure.subplots()
    for v, color in ((torch.tensor([1.5, 0.6]), SET), (torch.tensor([-0.7, 1.9]), SECOND)):
        axes.plot([0, 3 * v[0]], [0, 3 * v[1]], color=GRAY, linewidth=0.6, linestyle=(0, (4, 3)))
        steps = torch.stack([constraint(torch.tensor(g), v) for g in (0.5, 1.0, 1.5, 2.0)])
        axes.scatter(*steps.T, s=14, color=color)
        axes.annotate("", v.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "color": color})
    _square(axes, 2.4)


def hyperboloid(figure: Any, name: str) -> None:
    """The sheet for n = 1, with elements of equal distances; dashed, what it comes close to."""
    axes = figure.subplots()
    y = torch.linspace(-3, 3, 301)[:, None]
    x = of(name)(y)
    even = of(name)(torch.linspace(-1.6, 1.6, 9).sinh()[:, None])
    axes.plot(x[:, 1], x[:, 0], color=SET)
    axes.scatter(even[:, 1], even[:, 0], s=12, color=SECOND, zorder=3)
    axes.plot([-3, 0, 3], [3, 0, 3], color=GRAY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(xlim=(-2.6, 2.6), ylim=(0, 3), xlabel="$x_1$", ylabel="$x_0$")
    axes.set_aspect("equal")


def steps(figure: Any, name: str) -> None:
    """Vectors out of order, and the nearest elements."""
    axes = figure.subplots()
    numbers = torch.arange(1, 13)
    trend = torch.linspace(-1, 2, 12) + 0.9 * gaussian(12, seed=3)
    nearest = of(name).project(trend)
    axes.step(numbers, nearest, where="mid", color=SET)
    axes.scatter(numbers, trend, s=10, color=GRAY, zorder=3)
    axes.scatter(numbers, nearest, s=8, color=SECOND, zorder=4)
    axes.axhline(0, color=GRAY, linewidth=0.4, zorder=0)
    axes.set(xlabel="entry", ylabel="value")
    axes.set_xticks(range(2, 13, 2))


def columns(figure: Any, name: str) -> None:
    """The columns of a random element as arrows."""
    axes = figure.subplots()
    W = of(name).sample((2, 9), generator=generator(5))
    for column in W.T:
        axes.annotate("", column.tolist(), (0, 0), arrowprops={"arrowstyle": "->", "color": SET})
    if name == "oblique":
        from matplotlib.patches import Circle

        axes.add_patch(Circle((0, 0), 1, fill=False, color=GRAY, linewidth=0.8))
    _square(axes, 1.2 * float(W.norm(dim=0).max()), ("$W_{1j}$", "$W_{2j}$"))


# Matrices: their entries.


def entries(figure: Any, name: str) -> None:
    """The entries of a random element."""
    _heat(figure, figure.subplots(), of(name).sample((9, 9), generator=generator()))


def _heat(figure: Any, axes: Any, W: Tensor, bar: bool = True) -> None:
    """A heat map: zeros are white, and the scale is symmetric unless nothing is negative."""
    largest = float(W.abs().max())
    if bool((W >= 0).all()):
        image = axes.imshow(W.numpy(), cmap="Blues", vmin=0, vmax=largest)
    else:
        image = axes.imshow(W.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
    axes.spines[["top", "right"]].set_visible(True)
    axes.set_xticks([])
    axes.set_yticks([])
    if bar:
        figure.colorbar(image, ax=axes, shrink=0.85)


def diagonal_sum(figure: Any, name: str) -> None:
    """The entries of a random element, with the numbers of its diagonal, whose sum is zero."""
    axes = figure.subplots()
    W = of(name).sample((5, 5), generator=generator())
    _heat(figure, axes, W)
    for i, entry in enumerate(W.diagonal()):
        axes.text(i, i, f"{entry:.2f}", ha="center", va="center", fontsize=7)
    axes.set_title(" ".join(f"{entry:+.2f}" for entry in W.diagonal()) + " = 0", fontsize=8)


def factor(figure: Any, name: str) -> None:
    """The entries of the factor $L$ of the covariances or correlations to the right."""
    left, right = figure.subplots(1, 2)
    constraint = of(name)
    L = constraint.project(torch.linalg.cholesky(_covariance(8)))
    _pair(figure, left, right, L, L @ L.mT, ("$L$", r"$L\,L^\top$"))


def _covariance(n: int) -> Tensor:
    """That of a smooth function with noise, whose scale grows."""
    at = torch.arange(n) / n
    scale = 0.5 + at
    smooth = torch.exp(-8 * (at[:, None] - at) ** 2)
    return scale[:, None] * (smooth + 0.3 * torch.eye(n)) * scale


def _pair(figure: Any, left: Any, right: Any, A: Tensor, B: Tensor, titles: Sequence[str]) -> None:
    for axes, W, title in ((left, A, titles[0]), (right, B, titles[1])):
        _heat(figure, axes, W, bar=False)
        axes.set_title(title, fontsize=9)
        figure.colorbar(axes.images[0], ax=axes, orientation="horizontal", shrink=0.9)


def complex_parts(figure: Any, name: str) -> None:
    """The real and the imaginary part of a random element."""
    left, right = figure.subplots(1, 2)
    W = of(name).sample((8, 8), dtype=torch.complex64, generator=generator())
    _pair(figure, left, right, W.real, W.imag, ("real part", "imaginary part"))


def sums(figure: Any, name: str) -> None:
    """The entries of a random element, and the sums of its rows and columns beside it."""
    W = of(name)(2 * gaussian(6, 6, seed=3))
    axes = figure.subplots()
    _heat(figure, axes, W)
    for i, (row, column) in enumerate(zip(W.sum(1), W.sum(0), strict=True)):
        axes.text(5.7, i, f"{row:.2f}", va="center", fontsize=7)
        axes.text(i, 5.75, f"{column:.2f}", ha="center", va="top", fontsize=7)
    axes.set_anchor("W")


def outer(figure: Any, name: str) -> None:
    """The entries of a random element, and the two vectors whose product it is."""
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 7, 0.6), height_ratios=(1, 7))
    x, y = gaussian(9, seed=2), gaussian(9, seed=3)
    W = of(name)(x, y)
    for place, matrix, label in (((1, 0), x[:, None], "$x$"), ((0, 1), y[None], "$y$")):
        axes = figure.add_subplot(grid[place])
        _heat(figure, axes, matrix, bar=False)
        axes.set_aspect("auto")
        axes.set(**({"xlabel": label} if matrix.shape[1] == 1 else {"ylabel": label}))
    axes = figure.add_subplot(grid[1, 1])
    _heat(figure, axes, W, bar=False)
    axes.set_aspect("auto")
    figure.colorbar(axes.images[0], cax=figure.add_subplot(grid[1, 2]))


def mask(figure: Any, name: str) -> None:
    """The entries of a random element with a random mask."""
    chosen = (gaussian(9, 9, seed=8) > 0.3).int().tolist()
    _heat(figure, figure.subplots(), get(name)(mask=chosen).sample((9, 9), generator=generator()))


def slices(figure: Any, name: str) -> None:
    """The rows of one tensor: orthonormal, non-negative, and probabilities."""
    parts = ["orthogonal", "nonnegative", "simplex"]
    constraint = get(name)(parts=parts, sizes=[3, 3, 3], dim=-2)
    W = constraint.project(0.6 * gaussian(9, 9, seed=4))
    axes = figure.subplots()
    _heat(figure, axes, W)
    for line in (2.5, 5.5):
        axes.axhline(line, color="black", linewidth=1.2)
    axes.set_yticks([1, 4, 7], parts)
    axes.tick_params(length=0, labelsize=7)


# Matrices: their spectra.


def eigenvalues(figure: Any, name: str) -> None:
    """The eigenvalues of a random element of 40 rows in the complex plane."""
    kind = {"dtype": torch.complex64} if name == "unitary" else {}
    W = of(name).sample((40, 40), generator=generator(), **kind)
    axes = figure.subplots()
    found = torch.linalg.eigvals(W)
    size = 1.15 * float(found.abs().max())
    _beside(axes, name, size)
    axes.scatter(found.real, found.imag, s=9, color=SET, zorder=3)
    _square(axes, size, ("real part", "imaginary part"))


def stable(figure: Any, name: str) -> None:
    """The eigenvalues of a Gaussian matrix (gray) and of its projection."""
    X = gaussian(40, 40) / math.sqrt(40) * 1.3
    axes = figure.subplots()
    _beside(axes, name, 1.7)
    for W, color in ((X, GRAY), (of(name).project(X), SET)):
        found = torch.linalg.eigvals(W)
        axes.scatter(found.real, found.imag, s=9, color=color, zorder=3)
    _square(axes, 1.7, ("real part", "imaginary part"))


def _beside(axes: Any, name: str, size: float) -> None:
    from matplotlib.patches import Circle

    constraint: Any = of(name)
    if name in ("orthogonal", "unitary"):
        axes.add_patch(Circle((0, 0), 1, fill=False, color=GRAY, linewidth=0.8))
    if name == "schur":
        axes.add_patch(
            Circle((0, 0), constraint.radius, facecolor=PALE, edgecolor=GRAY, linewidth=0.8)
        )
    if name == "hurwitz":
        axes.axvspan(-size, -constraint.alpha, color=PALE, linewidth=0)
        axes.axvline(-constraint.alpha, color=GRAY, linewidth=0.8)


def singular_values(figure: Any, name: str) -> None:
    """The singular values of a Gaussian matrix (gray) and of its projection; the set is shaded."""
    X = gaussian(24, 24) / math.sqrt(24) * 1.3
    axes = figure.subplots()
    constraint = of(name)
    projected = torch.linalg.svdvals(constraint.project(X))
    found = allowed_range(constraint, projected, (24, 24), symmetric=False)
    assert found, f"{name} bounds no singular values"
    axes.axhspan(*found, color=PALE, linewidth=0)
    numbers = range(1, 25)
    axes.plot(numbers, torch.linalg.svdvals(X), ".-", color=GRAY, linewidth=0.8)
    axes.plot(numbers, projected, ".-", color=SET, linewidth=0.8)
    axes.set(xlabel="$i$", ylabel=r"singular value $\sigma_i$", ylim=(0, None))
    axes.set_xticks([1, 8, 16, 24])


def rank(figure: Any, name: str) -> None:
    """The singular values of a Gaussian matrix (gray) and of its nearest one of rank 3."""
    X = gaussian(12, 12, seed=1).double()
    found = torch.linalg.svdvals(of(name).project(X))
    axes = figure.subplots()
    numbers = torch.arange(1, 13)
    axes.plot(numbers, torch.linalg.svdvals(X), ".-", color=GRAY, linewidth=0.8)
    axes.plot(numbers, found, ".-", color=SET, linewidth=0.8)
    if name == "fixed_rank":
        axes.set_yscale("log")
    axes.axvline(3.5, color=GRAY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(xlabel="$i$", ylabel=r"singular value $\sigma_i$")
    axes.set_xticks(range(2, 13, 2))


def reciprocals(figure: Any, name: str) -> None:
    """The singular values of a random element on a logarithmic scale: $s$ and $1 / s$ in pairs."""
    W = of(name).sample((12, 12), generator=generator()).double()
    found = torch.linalg.svdvals(W)
    axes = figure.subplots()
    axes.scatter(range(1, 13), found, s=14, color=SET, zorder=3)
    axes.axhline(1, color=GRAY, linewidth=0.8)
    axes.set_yscale("log")
    axes.set(xlabel="$i$", ylabel=r"singular value $\sigma_i$")
    axes.set_xticks(range(2, 13, 2))
    axes.set_yticks([0.5, 1, 2], ["0.5", "1", "2"])
    axes.minorticks_off()


# Matrices of two or three rows: what they do.


def images(figure: Any, name: str) -> None:
    """The unit circle (gray), and its images under five elements of two rows."""
    axes = figure.subplots()
    angles = torch.linspace(0, 2 * math.pi, 200)
    circle = torch.stack([angles.cos(), angles.sin()])
    # Gaussian matrices may be long and thin; these are not far from the identity and a reflection.
    start = torch.eye(2).expand(5, 2, 2).clone()
    start[3:, 0] *= -1 if name == "invertible" else 1
    W = of(name).project(start + 0.4 * gaussian(5, 2, 2, seed=1))
    drawn = W @ circle
    for each, matrix in zip(drawn, W, strict=True):
        axes.plot(*each, color=SET if torch.linalg.det(matrix) > 0 else SECOND, linewidth=1)
    axes.plot(*circle, color=GRAY, linewidth=0.8)
    _square(axes, min(2.6, 1.1 * float(drawn.abs().max())))


def covariances(figure: Any, name: str) -> None:
    """Random elements of two rows as the ellipses of equal density of normal distributions."""
    axes = figure.subplots()
    angles = torch.linspace(0, 2 * math.pi, 200)
    circle = torch.stack([angles.cos(), angles.sin()])
    W = of(name).sample((6, 2, 2), generator=generator(2))
    values, vectors = torch.linalg.eigh(W)
    drawn = vectors * values.sqrt().unsqueeze(-2) @ circle
    for i, each in enumerate(drawn):
        axes.plot(*each, color=SET, linewidth=1, alpha=0.4 + 0.1 * i)
    _square(axes, 1.1 * float(drawn.abs().max()))


def cone(figure: Any, name: str) -> None:
    """The cone of the matrices of two rows, by their entries, and random elements."""
    axes = _space(figure)
    angle, height = torch.meshgrid(
        torch.linspace(0, 2 * math.pi, 37), torch.linspace(0, 2, 2), indexing="ij"
    )
    # W = [[t + u, v], [v, t - u]] is on the boundary for u^2 + v^2 = t^2.
    u, v = height / 2 * angle.cos(), height / 2 * angle.sin()
    axes.plot_surface(
        height / 2 + u, height / 2 - u, v, color=SET, alpha=0.15, linewidth=0, rstride=1, cstride=1
    )
    points = of(name).sample((900, 2, 2), generator=generator())
    trace = points[:, 0, 0] + points[:, 1, 1]
    points = points[(trace < 2) & (trace > (0.15 if name == "psd_fixed_rank" else 0))][:220]
    axes.scatter(
        points[:, 0, 0], points[:, 1, 1], points[:, 0, 1], s=3, color=SET, depthshade=False
    )
    if name == "psd_fixed_rank":
        axes.scatter([0], [0], [0], s=22, facecolor="white", edgecolor=SECOND)
    else:
        axes.scatter([0], [0], [0], s=14, color=SECOND)
    axes.view_init(elev=22, azim=-70)
    axes.set(xlim=(-0.3, 2.3), ylim=(-0.3, 2.3), zlim=(-1.3, 1.3))
    _names(axes, ("$W_{11}$", "$W_{22}$", "$W_{12}$"), (0, 1))


def elliptope(figure: Any, name: str) -> None:
    """The correlations of three variables: the set, cut at eleven values of $W_{23}$."""
    axes = _space(figure)
    angle = torch.linspace(0, 2 * math.pi, 80)
    for c in torch.linspace(-0.995, 0.995, 13):
        # For W_23 = c the boundary is an ellipse with the axes (1, 1) and (1, -1).
        along, across = ((1 + c) / 2).sqrt() * angle.cos(), ((1 - c) / 2).sqrt() * angle.sin()
        a, b = along + across, along - across
        axes.plot(a, b, c.expand_as(a), color=SET, linewidth=0.7)
    axes.view_init(elev=22, azim=-62)
    _cube(axes, (-1, 1), ("$W_{12}$", "$W_{13}$", "$W_{23}$"))


def letters(figure: Any, name: str) -> None:
    """The letter F (gray), and its images under seven random elements of two rows."""
    axes = figure.subplots()
    outline = [(0, 0), (0, 3), (2, 3), (2, 2.4), (0.6, 2.4), (0.6, 1.8), (1.6, 1.8), (1.6, 1.2)]
    letter = torch.tensor([*outline, (0.6, 1.2), (0.6, 0)]).T - torch.tensor([[0.8], [1.5]])
    chosen = torch.cat([torch.eye(2)[None], of(name).sample((7, 2, 2), generator=generator(1))])
    for i, W in enumerate(chosen):
        place = torch.tensor([[3.6 * (i % 4)], [-3.6 * (i // 4)]])
        axes.fill(*(W @ letter + place), color=SET if i else GRAY, linewidth=0)
    axes.set_aspect("equal")
    axes.set_axis_off()


def lines(figure: Any, name: str) -> None:
    """Random elements for p = 1 in three dimensions: lines, each with both its unit vectors."""
    axes = _space(figure)
    for W in of(name).sample((9, 3, 1), generator=generator(3)):
        ends = torch.cat([-W, W], 1)
        axes.plot(*ends, color=SET, linewidth=1)
        axes.scatter(*ends, s=8, color=SECOND, depthshade=False)
    axes.view_init(elev=20, azim=30)
    _cube(axes, (-1, 1), ("$x_1$", "$x_2$", "$x_3$"))


def _space(figure: Any) -> Any:
    return figure.add_subplot(projection="3d")


def _cube(axes: Any, limits: tuple[float, float], labels: Sequence[str]) -> None:
    # Wider, so that the labels of two axes do not meet at a corner.
    room = 0.2 * (limits[1] - limits[0])
    wide = (limits[0] - room, limits[1] + room)
    axes.set(xlim=wide, ylim=wide, zlim=wide)
    _names(axes, labels, limits)


def _names(axes: Any, labels: Sequence[str], ticks: Sequence[float]) -> None:
    axes.set_box_aspect((1, 1, 1), zoom=0.9)
    every = (axes.xaxis, axes.yaxis, axes.zaxis)
    for axis, label in zip(every, labels, strict=True):
        axis.set_ticks(ticks)
        axis.set_tick_params(labelsize=7, pad=-2)
        axis.set_rotate_label(False)
        axis.set_label_text(label)
        axis.labelpad = -4
        axis.set_pane_color((1, 1, 1, 0))


# Convolutions: what they do to waves.


def waves(figure: Any, name: str) -> None:
    """The singular values of a convolution at each frequency: Gaussian taps (gray), projected."""
    axes = figure.subplots()
    K = 0.5 * gaussian(3, 3, 3)
    frequencies = torch.linspace(0, math.pi, 120)
    phases = torch.exp(-1j * frequencies[:, None] * torch.arange(3))
    for kernel, color in ((K, GRAY), (of(name, event_dim=3).project(K), SET)):
        symbol = torch.einsum("oik,fk->foi", kernel.to(torch.complex64), phases)
        axes.plot(frequencies, torch.linalg.svdvals(symbol), color=color, linewidth=1)
    axes.axhline(1, color=SECOND, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set(xlabel="frequency", ylabel="singular values", ylim=(0, None), xlim=(0, math.pi))
    axes.set_xticks([0, math.pi / 2, math.pi], ["0", r"$\pi/2$", r"$\pi$"])


# Two constraints.


def both(figure: Any, name: str) -> None:
    """`sum_to_zero | ball`: the segment in which the line meets the ball, and projections."""
    from matplotlib.patches import Circle

    axes = figure.subplots()
    axes.add_patch(Circle((0, 0), 1, facecolor=PALE, linewidth=0))
    axes.plot([-2.4, 2.4], [2.4, -2.4], color=GRAY, linewidth=0.8, linestyle=(0, (4, 3)))
    _plane(axes, get(name)(parts=["sum_to_zero", "ball"]))


USUAL: dict[int, tuple[Draw, str]] = {
    0: (curve, "The map. The set is shaded."),
    1: (plane, "Vectors of two entries: the set, and points outside with their projections (red)."),
    2: (entries, "The entries of a random element."),
}

_SPECTRUM = "The eigenvalues of a random element of 40 rows"
_STABLE = "The eigenvalues of a Gaussian matrix (gray) and of its projection"
_SVD = "Singular values of a Gaussian matrix (gray) and of its projection. The set is shaded."
_SUMS = "The entries of an element, and the sums of its rows and columns."

CHOSEN: dict[str, tuple[Draw, str]] = {
    "almost_orthogonal": (singular_values, _SVD),
    "ball": (ball, "The balls of radius 1 in two dimensions."),
    "chain": (
        both,
        "`sum_to_zero | ball`: points, and the nearest ones (red) on a line and in a ball.",
    ),
    "cholesky_factor": (factor, "An element, and the covariance whose factor it is."),
    "column_stochastic": (sums, _SUMS),
    "correlation": (elliptope, "Three variables: the boundary, cut at thirteen heights."),
    "correlation_cholesky": (factor, "An element, and the correlation whose factor it is."),
    "doubly_stochastic": (sums, _SUMS),
    "fixed_rank": (
        rank,
        "Singular values of a Gaussian matrix (gray) and of its projection, rank 3.",
    ),
    "frobenius_norm": (
        columns,
        "The columns of a random element: the squares of all lengths sum to one.",
    ),
    "grassmann": (lines, "Lines in space, each represented by a unit vector or its negative."),
    "hamiltonian": (eigenvalues, f"{_SPECTRUM}: with each one its negative."),
    "hermitian": (complex_parts, "A random element: symmetric real, skew imaginary part."),
    "hurwitz": (stable, f"{_STABLE}, for the rate of decay 0.5. The set is shaded."),
    "invertible": (
        images,
        "The unit circle (gray) under five elements; red: negative determinant.",
    ),
    "lorentz": (hyperboloid, "Two entries: the sheet, and elements at equal distances (red)."),
    "low_rank": (
        rank,
        "Singular values of a Gaussian matrix (gray) and of its projection, rank 3.",
    ),
    "masked": (mask, "The entries of a random element."),
    "oblique": (columns, "The columns of a random element have length one."),
    "ordered": (steps, "A vector (gray) and the nearest element (red)."),
    "orthogonal": (eigenvalues, f"{_SPECTRUM}, on the unit circle."),
    "orthogonal_conv": (
        waves,
        "Singular values at each frequency: Gaussian taps (gray), projected.",
    ),
    "poincare_ball": (polar, "Circles and rays at equal distances of hyperbolic space."),
    "positive_definite": (
        covariances,
        "Random elements as ellipses of equal density of Gaussians.",
    ),
    "positive_ordered": (steps, "A vector (gray) and the nearest element (red)."),
    "positive_semidefinite": (cone, "Matrices of two rows: a cone with its inside."),
    "product": (slices, "Rows of one tensor: orthonormal, non-negative, probabilities."),
    "psd_fixed_rank": (cone, "Two rows, rank 1: the surface of the cone, without its tip."),
    "psd_low_rank": (cone, "Two rows, rank 1: the surface of the cone, with its tip."),
    "rank_one": (outer, "An element, and the two vectors whose product it is."),
    "row_stochastic": (sums, _SUMS),
    "schur": (stable, f"{_STABLE}. The set is shaded."),
    "simplex": (simplex, "Random elements of three entries."),
    "singular_values": (singular_values, _SVD),
    "soft_permutation": (sums, _SUMS),
    "special_linear": (images, "The unit circle (gray) under five elements: equal areas."),
    "special_orthogonal": (
        letters,
        "The letter F (gray) under seven random elements of two rows: turned, never mirrored.",
    ),
    "spectral_norm": (singular_values, _SVD),
    "spectral_norm_conv": (
        waves,
        "Singular values at each frequency: Gaussian taps (gray), projected.",
    ),
    "sphere": (sphere, "Random elements of three entries."),
    "symplectic": (reciprocals, "Singular values of a random element, in pairs s and 1 / s."),
    "traceless": (
        diagonal_sum,
        "The entries of a random element: those of the diagonal sum to zero.",
    ),
    "unitary": (eigenvalues, f"{_SPECTRUM}, on the unit circle, not in conjugate pairs."),
    "weight_norm": (lengths, "Two directions, and the elements for the lengths 0.5, 1, 1.5 and 2."),
}


if __name__ == "__main__":
    for name in pictures():
        save(name)
