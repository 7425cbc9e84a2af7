"""Matrices whose largest singular value is bounded."""

from __future__ import annotations

import weakref
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from constrained import register
from constrained.constraint.optional_methods import recomputed
from constrained.constraint.sampling import RandomNumbers
from constrained.torch_internals.tensors import has_values
from constraints.bases.argument_checks import PositiveNumber, checked_positive
from constraints.bases.expected_failures import no_derivative
from constraints.bases.shapes import Matrices
from constraints.math.clip_singular_values import clip_singular_values
from constraints.math.inward_gradient import inward_gradient, thin_inward_gradient
from constraints.math.krylov_norm import generic_directions
from constraints.math.leading_vectors import cut, vectors_of
from constraints.math.scale_to_norm import radial, radial_gradient, radial_step, tracked_radial
from constraints.math.singular_vectors import OneSide, Vectors, one_side
from constraints.math.svd import svdvals

#: For each constraint: some entries of the value that `canonical` returned last, and its singular
#: vectors. This is a cache and not part of any state: if it is lost, a decomposition finds the
#: vectors.
_followed: weakref.WeakKeyDictionary[SpectralNorm, Any] = weakref.WeakKeyDictionary()


#: For each constraint: some entries of the last gradient, and the two factors of it.
_thin: weakref.WeakKeyDictionary[SpectralNorm, Any] = weakref.WeakKeyDictionary()


#: A tensor is recognized by this many entries: an optimizer's step changes all of them.
_SAMPLE = 64


#: If the vectors take more memory than this share of the matrix, those of only one side are kept,
#: or none.
_MEMORY = 0.7


def _sample(X: Tensor) -> Tensor:
    return X.detach().reshape(-1)[:: max(1, X.numel() // _SAMPLE)].clone()


def _is_of(sample: Tensor, X: Tensor) -> bool:
    """Whether a sample may be of X: same numbers, dtype and device."""
    same = (sample.dtype, sample.device) == (X.dtype, X.device)
    return same and torch.equal(sample, _sample(X))


def _entries(*tensors: Tensor) -> int:
    return sum(tensor.numel() for tensor in tensors)


@register("spectral_norm", aliases=("lipschitz",))
class SpectralNorm(Matrices):
    r"""Matrices that stretch no vector by more than a bound.

    **Use**: layers with a certificate, a Lipschitz constant of at most $c$: critics of GANs
    (spectral normalization), robust classifiers, invertible residual networks.

    **Set**: $\{W \in \mathbb{R}^{n \times p} : \lVert W \rVert_2 \le c\}$, the matrices whose
    largest singular value is at most $c$: closed, convex, of dimension $n p$. For a linear layer
    this means a Lipschitz constant of at most $c$.

    **Map**: ``"clip"`` gives the nearest member in the Frobenius norm: singular values above $c$
    are replaced by $c$. ``"scale"`` divides a matrix outside by its norm,
    $X \mapsto c X / \lVert X \rVert_2$. Both are onto the set, and return a member bit for bit. The
    norm comes from a decomposition, except for ``"scale"`` in compiled code, which iterates.

    **Right inverse**: the matrix itself, and for ``"scale"`` the directions that it stretches most.
    It raises for a matrix outside; `constrained.constrain` and `project` project such a matrix.

    **Reference**: Sedghi, Gupta and Long, The singular values of convolutional layers (2019), for
    the projection as a constraint in training; Miyato, Kataoka, Koyama and Yoshida, Spectral
    normalization for generative adversarial networks (2018), for the division by the norm.

    ``"clip"`` is the default, because it reaches an optimum on the boundary, to 1e-4 of the loss.
    A division by the norm shrinks all singular values where only some are pushed outside, and came
    to rest 0.3 to 5 % above it (the nearest matrix to a Gaussian one of norm 4, with SGD and Adam,
    8 x 8 and 32 x 32).

    With ``"clip"``, `canonical` moves a parameter that a step has led outside back to the boundary,
    so that the parameter is the element itself. It uses the singular vectors near the bound, which
    it follows from step to step by a few products of the matrix with them. They are not stored as
    state. Where they are lost or do not help, as after a very large step or where most singular
    values are near the bound, the matrix is decomposed. In training, the bound was never exceeded
    by more than 1e-4 of it (`constraints.math.leading_vectors`). Without `canonical`, and in
    compiled code, the map is computed by a decomposition. On the boundary, steps use a modified
    gradient with which Adam too comes to rest at the optimum: see
    `constraints.math.inward_gradient`. It replaces the parameter's ``grad`` when the step begins;
    read gradients before that.

    ``"scale"`` follows two vectors only, by a few products of the matrix with them after each step.
    It computes the norm from the directions that were stretched most before. That is an estimate
    from below: no product can show that it is the largest singular value. The bound was exceeded by
    less than 1e-4 of it at each step that was tried, from random and small matrices up to
    1024 x 1024, with SGD and Adam; by 1e-3 at most in the first steps from a matrix with many equal
    singular values. `violation` and `constrained.violations` decompose.

    Args:
        bound: the largest norm $c$, greater than zero.
        map: ``"clip"`` or ``"scale"``.

    Shape:
        ``(*batch, n, p)``.

    Raises:
        TypeError: if the bound is not a number.
        ValueError: if the bound is not positive and finite, or the map unknown.

    Example:
        >>> SpectralNorm(bound=2.0).project(torch.tensor([[8.0, 0.0], [0.0, 1.0]]))
        tensor([[2., 0.],
                [0., 1.]])
    """

    preserves = ("symmetric", "skew", "diagonal", "positive_semidefinite")
    value_index = 0
    remembers = True
    examples = (
        ({}, (1, 1)),
        ({}, (3, 3)),
        ({"bound": 0.5}, (4, 2)),
        ({"bound": 2.5}, (2, 5)),
        ({}, (1, 4)),
        ({"map": "scale"}, (3, 3)),
        ({"map": "scale", "bound": 0.5}, (8, 3)),
        ({"map": "scale", "bound": 2.5}, (2, 5)),
    )
    expected_failures = no_derivative(
        "the map has a kink on the boundary: the identity inside, a projection outside",
        *("ones", "eye", "repeated", "boundary"),
    )

    def __init__(self, bound: PositiveNumber = 1.0, map: Literal["clip", "scale"] = "clip") -> None:
        super().__init__()
        if map not in ("clip", "scale"):
            raise ValueError(f"spectral_norm: map must be 'clip' or 'scale', got {map!r}.")
        self.bound = checked_positive("spectral_norm", bound)
        self.map = map
        if map == "scale":
            self.frozen = (1,)
            # Its map takes a second parameter, so in a chain it can only be the first part.
            self.preserves = ()
            nearest = "project() divides by the norm, as the map does"
            self.expected_failures = {**self.expected_failures, "nearest": nearest}

    def forward(self, X: Tensor, *directions: Tensor) -> Tensor:
        """X itself if it is a member; otherwise the nearest member, or the multiple of X."""
        if self.map == "scale":
            return radial(X, directions[0], self.bound)
        return clip_singular_values(X, self.bound)

    def right_inverse(self, value: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The matrix, and for ``"scale"`` the directions that it stretches most."""
        if self.map == "clip":
            return value
        directions = generic_directions(value)
        if has_values(value):
            return value, tracked_radial(value, directions, self.bound)[1]
        return value, directions.clone()

    def canonical(self, X: Tensor, *directions: Tensor) -> tuple[Tensor, ...]:
        """The element itself, and for ``"scale"`` the directions that it stretches most."""
        with torch.no_grad():
            if self.map == "scale":
                return tracked_radial(X, directions[0], self.bound)
            if not has_values(X):
                return (self.forward(X),)
            W, vectors = cut(X, self.bound, self._vectors_of(None))
            self._follow(W, vectors)
            return (W,)

    def pullback(
        self, value: Tensor, gradient: Tensor, X: Tensor, *directions: Tensor
    ) -> tuple[Tensor | None, ...]:
        """The gradient itself at a member; for ``"scale"``, its part along the boundary outside."""
        if X is not value and not torch.equal(X, value):
            return recomputed(self, gradient, (X, *directions))
        if self.map == "clip":
            _thin.pop(self, None)
            return (gradient,)
        return radial_gradient(gradient, X, directions[0], self.bound), None

    def thin_pullback(
        self, value: Tensor, left: Tensor, right: Tensor, *params: Tensor
    ) -> tuple[Tensor | None, ...] | None:
        """As `pullback`, for ``"clip"``. The factors are kept for `step_gradient`."""
        if self.map == "scale" or params[0] is not value:
            return None
        gradient = left.mT @ right
        _thin[self] = _sample(gradient), left, right
        return (gradient,)

    def step_gradient(self, gradient: Tensor, *params: Tensor) -> Tensor:
        """On the boundary, the gradient mapping of `constraints.math.inward_gradient`."""
        if not has_values(gradient):
            return gradient
        if self.map == "scale":
            return radial_step(gradient, params[0], params[1], self.bound)
        vectors = self._vectors_of(params[0])
        sample, left, right = _thin.pop(self, (None, gradient, gradient))
        if vectors is None or not bool(vectors.at.any()):
            return gradient
        if sample is not None and gradient.ndim == 2 and _is_of(sample, gradient):
            return thin_inward_gradient(gradient, left, right, self.bound, vectors)
        return inward_gradient(gradient, self.bound, vectors)

    def _vectors_of(self, X: Tensor | None) -> Vectors | None:
        """The singular vectors of X at the bound and near it; if X is None, those stored last."""
        sample, vectors = _followed.get(self, (None, None))
        if X is None:
            return None if isinstance(vectors, OneSide) else vectors
        if sample is None or not _is_of(sample, X):
            vectors = vectors_of(X, self.bound)
            self._follow(X, vectors)
        return vectors.vectors(X) if isinstance(vectors, OneSide) else vectors

    def _follow(self, value: Tensor, vectors: Vectors | None) -> None:
        most = _MEMORY * value.numel()
        kept: Vectors | OneSide | None = vectors
        if vectors is not None and _entries(*vectors[:3], *vectors.probed) > most:
            kept = one_side(vectors)
        if value.is_inference() or (isinstance(kept, OneSide) and _entries(*kept[:2]) > most):
            _followed.pop(self, None)
        else:
            _followed[self] = _sample(value), kept

    def violation(self, value: Tensor) -> Tensor:
        """``max(0, norm - bound)``, the distance in the spectral norm."""
        return F.relu(svdvals(value)[..., 0] - self.bound)

    def slack(self, value: Tensor) -> Tensor:
        """The bound less the norm."""
        return self.bound - svdvals(value)[..., 0]

    def project(self, value: Tensor) -> Tensor:
        """The nearest member in the Frobenius norm; for ``"scale"`` the multiple on the boundary.

        With ``"scale"`` only the largest singular value ends at the bound. Clipping makes several
        equal, and then following the largest one would not work.
        """
        if self.map == "scale":
            return radial(value, generic_directions(value), self.bound)
        return clip_singular_values(value, self.bound)

    def retract(self, value: Tensor) -> Tensor:
        """The nearest member, which has its singular values clipped, for ``map="scale"`` too.

        With ``mode="project"`` training would come to rest beside an optimum on the boundary if it
        came back by a scaling.
        """
        return clip_singular_values(value, self.bound)

    def draw(self, shape: tuple[int, ...], random: RandomNumbers) -> Tensor:
        """A Gaussian matrix, scaled to a norm that is uniform between 0 and the bound."""
        gaussian = random.normal(shape)
        norm = svdvals(gaussian)[..., :1, None]
        return random.uniform(norm.shape) * self.bound * gaussian / norm
