"""Five small constraints without faults, on which the tests of the laws plant faults."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch.nn.functional import logsigmoid

from constrained import Constraint


class Sphere(Constraint):
    """Vectors of a given length.

    **Set**: {y : |y| = radius}, of dimension n - 1, closed.
    **Map**: v -> radius v / |v|, onto; the first unit vector where v = 0.
    **Right inverse**: the identity.
    **Reference**: none needed.
    """

    event_dim = 1
    examples = (({}, (4,)), ({"radius": 3.0}, (5,)))
    expected_failures: ClassVar = {
        "first_derivative:zero_params": "no map onto the sphere is continuous at zero",
    }

    def __init__(self, radius=1.0):
        super().__init__()
        self.radius = radius

    def forward(self, vector):
        largest = vector.abs().amax(-1, keepdim=True)
        zero = largest == 0
        first = torch.zeros_like(vector)
        first[..., 0] = 1
        safe = torch.where(zero, first, vector / torch.where(zero, 1, largest))
        return self.radius * safe / torch.linalg.vector_norm(safe, dim=-1, keepdim=True)

    def right_inverse(self, value):
        return value

    def violation(self, value):
        return (torch.linalg.vector_norm(value, dim=-1) - self.radius).abs()

    def project(self, value):
        return self.forward(value)

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return self.forward(noise)

    def dimension(self, shape):
        return shape[-1] - 1


class Symmetric(Constraint):
    """Symmetric matrices.

    **Set**: {S : S = S^T}, of dimension n (n + 1) / 2, closed.
    **Map**: X -> upper triangle of X, mirrored; onto.
    **Right inverse**: the upper triangle.
    **Reference**: none needed.
    """

    event_dim = 2
    examples = (({}, (3, 3)),)

    def shape_problem(self, event):
        return None if event[0] == event[1] else "must be square"

    def forward(self, upper):
        return upper.triu() + upper.triu(1).mT

    def right_inverse(self, value):
        return value.triu()

    def violation(self, value):
        return torch.linalg.matrix_norm(value - value.mT)

    def project(self, value):
        return (value + value.mT) / 2

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return self.project(torch.randn(shape, generator=generator, dtype=dtype, device=device))

    def dimension(self, shape):
        return shape[-1] * (shape[-1] + 1) // 2


class NonNegative(Constraint):
    """Numbers at least zero.

    **Set**: {x : x >= 0}, of dimension 1, closed.
    **Map**: y -> |y|, with the slope 1 at 0; onto.
    **Right inverse**: the identity.
    **Reference**: none needed.
    """

    event_dim = 0
    examples = (({}, ()),)
    expected_failures: ClassVar = {
        f"{law}:{point}": "a kink at 0, where a smooth map onto the half line has the slope 0"
        for law in ("first_derivative", "second_derivative")
        for point in ("zero_params", "zeros", "boundary")
    }

    def forward(self, free):
        return torch.where(free < 0, -free, free)

    def right_inverse(self, value):
        return value.clamp_min(0)

    def violation(self, value):
        return (-value).clamp_min(0)

    def slack(self, value):
        return value

    def project(self, value):
        return value.clamp_min(0)

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return torch.randn(shape, generator=generator, dtype=dtype, device=device).abs()

    def dimension(self, shape):
        return 1


class PositiveDefinite(Constraint):
    """Symmetric positive definite matrices, with a Cholesky factor of positive diagonal.

    **Set**: {P : P = P^T, x^T P x > 0 for x != 0}, of dimension n (n + 1) / 2, open.
    **Map**: L -> C C^T, C = strict lower triangle of L plus softplus of its diagonal; onto.
    **Right inverse**: the Cholesky factor.
    **Reference**: Pinheiro and Bates (1996).
    """

    event_dim = 2
    closed = False
    expected_failures: ClassVar = {
        "adam_reaches_the_optimum": "next to the boundary softplus is as flat as exp, and "
        "from the projection of zeros the way is longer than the law's steps"
    }
    examples = (({}, (3, 3)),)

    def shape_problem(self, event):
        return None if event[0] == event[1] else "must be square"

    def forward(self, lower):
        diagonal = -logsigmoid(-lower.diagonal(dim1=-2, dim2=-1))
        factor = lower.tril(-1) + torch.diag_embed(diagonal)
        return factor @ factor.mT

    def right_inverse(self, value):
        factor = torch.linalg.cholesky(self.project(value))
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        return factor.tril(-1) + torch.diag_embed(diagonal + torch.log(-torch.expm1(-diagonal)))

    def violation(self, value):
        negative = (-torch.linalg.eigvalsh((value + value.mT) / 2)).clamp_min(0)
        return torch.linalg.matrix_norm(value - value.mT) + torch.linalg.vector_norm(
            negative, dim=-1
        )

    def project(self, value):
        values, vectors = torch.linalg.eigh((value + value.mT) / 2)
        floor = (
            16 * torch.finfo(value.dtype).eps * values.abs().amax(-1, keepdim=True).clamp_min(1e-6)
        )
        found = (vectors * values.clamp_min(floor).unsqueeze(-2)) @ vectors.mT
        found = (found + found.mT) / 2
        symmetric = (value == value.mT).all(-1).all(-1)
        keep = symmetric & (values > floor).all(-1)
        return torch.where(keep[..., None, None], value, found)

    def inwards(self, value, share):
        # The derivative is a small entry of the diagonal times that of softplus there: its square.
        values, vectors = torch.linalg.eigh(value)
        least = share * values[..., -1:].clamp_min(1)
        moved = (vectors * values.clamp_min(2 * least).unsqueeze(-2)) @ vectors.mT
        inside = (values > least).all(-1)[..., None, None]
        return torch.where(inside, value, (moved + moved.mT) / 2)

    def admit(self, value, share):
        values, vectors = torch.linalg.eigh((value + value.mT) / 2)
        found = (vectors * values.abs().unsqueeze(-2)) @ vectors.mT
        return self.inwards((found + found.mT) / 2, share)

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        dtype = dtype or torch.get_default_dtype()
        wide = torch.promote_types(dtype, torch.float32)
        noise = torch.randn(shape, generator=generator, dtype=wide, device=device)
        value = noise @ noise.mT / math.sqrt(shape[-1]) + torch.eye(shape[-1], dtype=wide)
        return ((value + value.mT) / 2).to(dtype)

    def dimension(self, shape):
        return shape[-1] * (shape[-1] + 1) // 2


class Hermitian(Constraint):
    """Hermitian matrices; symmetric ones in a real dtype.

    **Set**: {H : H = H^*}, of dimension n^2, closed.
    **Map**: X -> upper triangle of X with a real diagonal, mirrored and conjugated; onto.
    **Right inverse**: the upper triangle.
    **Reference**: none needed.
    """

    event_dim = 2
    complex = True
    examples = (({}, (3, 3)),)

    def shape_problem(self, event):
        return None if event[0] == event[1] else "must be square"

    def forward(self, upper):
        diagonal = upper.diagonal(dim1=-2, dim2=-1)
        diagonal = (diagonal + diagonal.conj()) / 2
        return upper.triu(1) + upper.triu(1).mH + torch.diag_embed(diagonal)

    def right_inverse(self, value):
        return value.triu()

    def violation(self, value):
        return torch.linalg.matrix_norm(value - value.mH)

    def project(self, value):
        return (value + value.mH) / 2

    def sample(self, shape, *, generator=None, dtype=None, device=None):
        return self.project(torch.randn(shape, generator=generator, dtype=dtype, device=device))

    def dimension(self, shape):
        return shape[-1] ** 2
