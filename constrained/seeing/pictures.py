"""The pictures of `constrained.plot`: spectra, eigenvalues, points on a simplex or a sphere."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from constrained.constraint.base import Constraint
from constrained.seeing.allowed import allowed_eigenvalues, allowed_range
from constrained.seeing.spectrum import singular_values
from constrained.seeing.subject import POINTS, axes, matrices_of, subject_of, vectors_of
from constrained.torch_internals import linalg

#: The most matrices whose spectra are shown.
_MATRICES = 200

_INSIDE = "#cfe3f7"
_MAIN = "#1f5fa8"
_PALE = "#b0b0b0"


def spectrum(what: nn.Module | Tensor, by: Any = None, *, ax: Any = None) -> Any:
    """The singular values of matrices, beside the interval in which the set keeps them.

    Of symmetric matrices the eigenvalues. The interval is found by asking the constraint about
    multiples of an orthogonal matrix; there is none where the set says something else about its
    members than the size of these numbers. Of several matrices each has a line.

    Args:
        what: a model, or a tensor of shape ``(*batch, n, p)``.
        by: of a model the path of the tensor, which may be left out if there is one constrained
            tensor only; of a tensor its constraint, a name, a spec or a `Constraint`, or None.
        ax: axes of matplotlib to draw into; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such tensor, or its elements are no matrices, or not finite.
        ImportError: without matplotlib.

    Example:
        >>> import constrained
        >>> from constrained import plot
        >>> layer = constrained.constrain(nn.Linear(8, 6), "weight", "spectral_norm")
        >>> axes = plot.spectrum(layer, "weight")                           # doctest: +SKIP
        >>> axes.figure.savefig("spectrum.png")                             # doctest: +SKIP
    """
    subject = subject_of(what, by)
    matrices = matrices_of(subject, "spectrum")
    ax = axes(ax)
    symmetric = _are_symmetric(matrices)
    if symmetric:
        numbers = linalg.eigvalsh(matrices.double()).flip(-1)
    else:
        numbers = singular_values(matrices)
    numbers = numbers.reshape(-1, numbers.shape[-1]).double().cpu()
    many = len(numbers) > 1
    for i, line in enumerate(numbers[:_MATRICES]):
        ax.plot(
            range(1, len(line) + 1),
            line.tolist(),
            color=_MAIN,
            alpha=max(0.15, 1 / len(numbers)),
            linewidth=0.8,
            marker="o",
            markersize=3 if many else 4,
            label=f"{len(numbers[:_MATRICES])} matrices" if many and not i else None,
        )
    if not symmetric:
        ax.set_ylim(0, 1.08 * float(numbers.max()) or 1.0)
    if subject.constraint is not None:
        rows, columns = map(int, matrices.shape[-2:])
        found = allowed_range(subject.constraint, numbers, (rows, columns), symmetric=symmetric)
        if found is not None:
            _draw_range(ax, *found, closed=subject.constraint.closed)
    if not symmetric:
        ax.set_ylim(bottom=0)
    ax.set_xlabel("index")
    ax.set_ylabel("eigenvalue" if symmetric else "singular value")
    ax.set_title(subject.title, fontsize="medium")
    ax.xaxis.get_major_locator().set_params(integer=True)
    if ax.get_legend_handles_labels()[0]:
        _legend_above(ax)
    return ax


def _draw_range(ax: Any, low: float, high: float, *, closed: bool) -> None:
    """Shade the numbers that the set allows; room is left beyond its ends."""
    ends = [end for end in (low, high) if math.isfinite(end)]
    if not ends:
        return
    if high - low <= 1e-6 * abs(ends[-1]):
        ax.axhline(high, color=_MAIN, linestyle="--", linewidth=1, label=f"the set: {high:.4g}")
        return
    if high == math.inf:
        words = f"{low:.4g} or more" if closed else f"above {low:.4g}"
    else:
        words = f"{low:.4g} to {high:.4g}"
    bottom, top = ax.get_ylim()
    room = 0.12 * (max(top, *ends) - min(bottom, *ends))
    bottom, top = min(bottom, *(end - room for end in ends)), max(top, *(e + room for e in ends))
    ax.set_ylim(bottom, top)
    ax.axhspan(max(low, bottom), min(high, top), color=_INSIDE, zorder=0, label=f"the set: {words}")


def eigenvalues(what: nn.Module | Tensor, by: Any = None, *, ax: Any = None) -> Any:
    """The eigenvalues of square matrices in the complex plane, where the set allows them.

    Args:
        what: a model, or a tensor of shape ``(*batch, n, n)``.
        by: as for `spectrum`.
        ax: axes of matplotlib to draw into; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such tensor, or its elements are no square matrices, or not
            finite.
        ImportError: without matplotlib.

    Example:
        >>> import constrained
        >>> from constrained import plot
        >>> layer = constrained.constrain(nn.Linear(8, 8), "weight", "schur")
        >>> axes = plot.eigenvalues(layer)                                  # doctest: +SKIP
    """
    subject = subject_of(what, by)
    matrices = matrices_of(subject, "eigenvalues")
    if matrices.shape[-1] != matrices.shape[-2]:
        shape = " x ".join(map(str, matrices.shape[-2:]))
        raise ValueError(f"eigenvalues: {subject.title} has matrices of {shape}, not square ones.")
    ax = axes(ax)
    wide = torch.complex128 if matrices.is_complex() else torch.float64
    values = linalg.eigvals(matrices.to(wide)).flatten().cpu()[:POINTS]
    reach = 1.25 * max(1.0, float(torch.view_as_real(values).abs().max()))
    if subject.constraint is not None:
        _draw_region(ax, subject.constraint, reach)
    circle = [torch.arange(0, 361) * (math.pi / 180)]
    ax.plot(
        *(f(circle[0]).tolist() for f in (torch.cos, torch.sin)),
        color=_PALE,
        linestyle=":",
        linewidth=1,
        label="unit circle",
    )
    ax.axhline(0, color=_PALE, linewidth=0.5, zorder=0.5)
    ax.axvline(0, color=_PALE, linewidth=0.5, zorder=0.5)
    ax.scatter(values.real.tolist(), values.imag.tolist(), s=18, color=_MAIN, zorder=3)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    ax.set_xlabel("real part")
    ax.set_ylabel("imaginary part")
    ax.set_title(subject.title, fontsize="medium")
    _legend_above(ax)
    return ax


def _draw_region(ax: Any, constraint: Constraint, reach: float) -> None:
    count = 121
    line = torch.linspace(-reach, reach, count, dtype=torch.float64)
    upper = line[count // 2 :]
    grid = torch.complex(*torch.meshgrid(line, upper, indexing="xy"))
    found = allowed_eigenvalues(constraint, grid.flatten())
    if found is None or not bool((found >= 0).any()) or bool((found >= 0).all()):
        return
    half = found.reshape(grid.shape)
    # Matrices are real, so that eigenvalues come in conjugate pairs.
    whole = torch.cat([half.flip(0)[:-1], half])
    ax.contourf(line.numpy(), line.numpy(), whole.numpy(), levels=[0, math.inf], colors=[_INSIDE])
    ax.fill([], [], color=_INSIDE, label="the set")


def simplex(what: nn.Module | Tensor, by: Any = None, *, ax: Any = None) -> Any:
    """Vectors of three probabilities in a triangle, whose corners are the certain outcomes.

    Args:
        what: a model, or a tensor of shape ``(*batch, 3)``.
        by: as for `spectrum`.
        ax: axes of matplotlib to draw into; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such tensor, or it has other than three entries in its last
            dimension, or they are not finite.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from constrained import plot
        >>> axes = plot.simplex(torch.tensor([[0.2, 0.3, 0.5]]))            # doctest: +SKIP
    """
    subject = subject_of(what, by)
    points = vectors_of(subject, "simplex")
    ax = axes(ax)
    height = math.sqrt(3) / 2
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, height]], dtype=torch.float64)
    ax.fill(*corners.T.tolist(), facecolor=_INSIDE, edgecolor=_MAIN, linewidth=1, zorder=1)
    middle = corners.mean(0)
    for i, corner in enumerate(middle + 1.12 * (corners - middle)):
        place = map(float, corner)
        ax.text(*place, f"$x_{i + 1} = 1$", ha="center", va="center")
    placed = points @ corners
    ax.scatter(*placed.T.tolist(), s=16, color=_MAIN, alpha=_opacity(len(points)), zorder=3)
    ax.set_aspect("equal")
    # Outsiders are shown too.
    low, high = placed.amin(0), placed.amax(0)
    ax.set_xlim(min(-0.15, float(low[0]) - 0.05), max(1.15, float(high[0]) + 0.05))
    ax.set_ylim(min(-0.12, float(low[1]) - 0.05), max(height + 0.12, float(high[1]) + 0.05))
    ax.axis("off")
    ax.set_title(subject.title, fontsize="medium")
    return ax


def sphere(what: nn.Module | Tensor, by: Any = None, *, ax: Any = None) -> Any:
    """Vectors of three entries in space, on the sphere of their common length.

    If their lengths differ, the sphere is that of the longest one.

    Args:
        what: a model, or a tensor of shape ``(*batch, 3)``.
        by: as for `spectrum`.
        ax: axes of matplotlib to draw into, with ``projection="3d"``; a new figure by default.

    Returns:
        The axes.

    Raises:
        ValueError: if there is no such tensor, or it has other than three entries in its last
            dimension, or they are not finite, or the axes are flat.
        ImportError: without matplotlib.

    Example:
        >>> import torch
        >>> from constrained import plot
        >>> axes = plot.sphere(torch.eye(3))                                # doctest: +SKIP
    """
    subject = subject_of(what, by)
    points = vectors_of(subject, "sphere")
    ax = axes(ax, projection="3d")
    if not hasattr(ax, "plot_surface"):
        raise ValueError('sphere: the axes must be made with projection="3d".')
    radius = float(linalg.vector_norm(points, dim=-1).max()) or 1.0
    angle, turn = torch.meshgrid(
        torch.linspace(0, math.pi, 25), torch.linspace(0, 2 * math.pi, 49), indexing="ij"
    )
    surface = (angle.sin() * turn.cos(), angle.sin() * turn.sin(), angle.cos())
    # Drawn first: the points in front and behind are told apart by their depth.
    ax.computed_zorder = False
    ax.plot_wireframe(
        *((radius * s).numpy() for s in surface),
        rstride=4,
        cstride=4,
        color=_MAIN,
        alpha=0.25,
        linewidth=0.6,
        zorder=1,
    )
    ax.scatter(*points.T.tolist(), s=16, color=_MAIN, depthshade=True, zorder=2)
    ax.set_box_aspect((1, 1, 1))
    for name in "xyz":
        getattr(ax, f"set_{name}label")(f"$x_{'xyz'.index(name) + 1}$")
        getattr(ax, f"set_{name}ticks")([-radius, 0, radius])
        getattr(ax, f"set_{name}lim")(-1.05 * radius, 1.05 * radius)
        getattr(ax, f"{name}axis").set_major_formatter("{x:.3g}")
    ax.set_title(subject.title, fontsize="medium")
    return ax


def _are_symmetric(matrices: Tensor) -> bool:
    if matrices.shape[-1] != matrices.shape[-2] or matrices.is_complex():
        return False
    size = matrices.abs().amax((-2, -1))
    return bool(((matrices - matrices.mT).abs().amax((-2, -1)) <= 1e-6 * size).all())


def _opacity(count: int) -> float:
    return max(0.3, min(1.0, 50 / count))


def _legend_above(ax: Any) -> None:
    """A legend between the title and the picture, where nothing is drawn."""
    ax.legend(
        loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize="small", frameon=False
    )
    ax.set_title(ax.get_title(), fontsize="medium", pad=24)
