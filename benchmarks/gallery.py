"""What the sets look like: a small picture of a random element of each, chosen by its shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from constrained import get, names
from constrained.constraint.base import Constraint

COLOR, PALE = "#1f6f8b", "#c9ccd1"


def example(name: str) -> Constraint:
    """A constraint of this name, with the arguments of its first example."""
    arguments, _ = get(name).examples[0]
    return get(name)(**arguments)


def element(name: str, seed: int = 0) -> tuple[Constraint, Tensor]:
    """A constraint and a random element: of a size worth a picture, where the set allows it."""
    constraint = example(name)
    _, smallest = get(name).examples[0]
    generator = torch.Generator().manual_seed(seed)
    for shape in ((16, 16), (24, 8), (16, 3, 3, 3), (24,), smallest):
        wanted = _shape(constraint, shape)
        if wanted is None:
            continue
        try:
            constraint.check_shape(wanted)
            return constraint, constraint.sample(wanted, generator=generator)
        except ValueError:
            continue
    return constraint, constraint.sample(smallest, generator=generator)


def wall(columns: int = 9, chosen: Sequence[str] | None = None) -> Figure:
    """One panel for each constraint of the registry."""
    chosen = names() if chosen is None else chosen
    lines = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * lines), layout="constrained")
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes, name in zip(grid, chosen, strict=False):
        constraint, value = element(name)
        _picture(axes, constraint, value)
        axes.set_title(name, fontsize=8)
    for axes in grid[len(chosen) :]:
        axes.set_visible(False)
    return figure


def eigenvalues(chosen: Sequence[str], n: int = 60, columns: int = 4) -> Figure:
    """Eigenvalues of a random element of sets of square matrices, beside the unit circle."""
    lines = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(2.8 * columns, 2.9 * lines), layout="constrained")
    for axes, name in zip(
        figure.subplots(lines, columns, squeeze=False).flat, chosen, strict=False
    ):
        constraint = example(name)
        W = constraint.sample((n, n), generator=torch.Generator().manual_seed(0))
        found = torch.linalg.eigvals(W)
        axes.add_patch(Circle((0, 0), 1, fill=False, color=PALE))
        axes.axhline(0, color=PALE, linewidth=0.6)
        axes.axvline(0, color=PALE, linewidth=0.6)
        axes.scatter(found.real, found.imag, s=9, color=COLOR)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_title(repr(constraint), fontsize=9)
        axes.set_xlabel("real part", fontsize=8)
        axes.set_ylabel("imaginary part", fontsize=8)
        axes.tick_params(labelsize=7)
    return figure


def singular_values(chosen: Sequence[str], shape: tuple[int, int] = (48, 32)) -> Figure:
    """The singular values of Gaussian matrices, and of what they are projected to."""
    figure = Figure(figsize=(2.8 * len(chosen), 2.6), layout="constrained")
    gaussian = torch.randn(shape, generator=torch.Generator().manual_seed(0)) / shape[1] ** 0.5
    for axes, name in zip(figure.subplots(1, len(chosen), squeeze=False).flat, chosen, strict=True):
        constraint = example(name)
        projected = constraint.project(gaussian)
        axes.plot(torch.linalg.svdvals(gaussian), color=PALE, label="before")
        axes.plot(torch.linalg.svdvals(projected), color=COLOR, label="projected")
        axes.set_title(repr(constraint), fontsize=9)
        axes.set_xlabel("number", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].set_ylabel("singular value", fontsize=8)
    figure.axes[0].legend(fontsize=8, frameon=False)
    return figure


def vectors(chosen: Sequence[str] = ("simplex", "sphere", "ball", "l1_ball", "max_norm")) -> Figure:
    """Random elements of sets of vectors in three dimensions, or two of them for the simplex."""
    figure = Figure(figsize=(2.9 * len(chosen), 3.2))
    figure.subplots_adjust(left=0.01, right=0.97, bottom=0.06, top=0.9, wspace=0.15)
    for i, name in enumerate(chosen):
        axes = figure.add_subplot(1, len(chosen), i + 1, projection="3d")
        points = example(name).sample((600, 3), generator=torch.Generator().manual_seed(0))
        axes.scatter(*points.T, s=4, color=COLOR, depthshade=True)
        axes.view_init(elev=25, azim=35)
        axes.set_title(repr(example(name)), fontsize=9)
        axes.tick_params(labelsize=6)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_major_locator(MaxNLocator(3))
        axes.set_box_aspect((1, 1, 1))
    return figure


def _shape(constraint: Constraint, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """The shape of what to draw: numbers and vectors as a batch, else one element."""
    event = constraint.event_dim
    if event is None:
        return shape
    if event <= 1:
        return (64, *shape[: max(event, 0)]) if len(shape) == 1 else None
    return shape if len(shape) == event else None


def _picture(axes: Axes, constraint: Constraint, value: Tensor) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    if constraint.event_dim == 0:
        axes.hist(value.flatten().numpy(), bins=24, color=COLOR)
        axes.tick_params(axis="x", labelsize=6)
        low, high = float(value.min()), float(value.max())
        axes.set_xticks([low, high], [f"{low:.2g}", f"{high:.2g}"])
    elif value.ndim == 2 and constraint.event_dim == 1:
        for row in value[:6]:
            axes.plot(row.numpy(), linewidth=0.9, color=COLOR, alpha=0.6)
    else:
        flat = value.abs() if value.is_complex() else value
        image = flat.reshape(flat.shape[0], -1) if flat.ndim > 2 else flat
        largest = float(image.abs().max()) or 1.0
        axes.imshow(image.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest, aspect="auto")
