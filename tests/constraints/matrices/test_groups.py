"""Rotations, unitary and symplectic matrices, subspaces: references, degenerate members, optima."""

import geoopt
import geotorch
import pytest
import scipy.linalg
import scipy.stats
import torch
from torch import nn

from constrained import constrain
from constraints import Grassmann, SpecialOrthogonal, Symplectic, Unitary

DOUBLE = torch.float64


def holder(value, constraint):
    module = nn.Module()
    module.weight = nn.Parameter(value.clone())
    return constrain(module, "weight", constraint)


def train(module, loss, rate=0.05, steps=800):
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(module.weight).backward()
        optimizer.step()
        schedule.step()
    return module.weight.detach()


class TestSpecialOrthogonal:
    def test_scipy(self):
        theirs = torch.tensor(scipy.stats.special_ortho_group.rvs(5, size=20, random_state=0))
        assert SpecialOrthogonal().contains(theirs).all()
        both = torch.tensor(scipy.stats.ortho_group.rvs(5, size=40, random_state=0))
        assert torch.equal(SpecialOrthogonal().contains(both), torch.linalg.det(both) > 0)

    def test_geotorch(self):
        manifold = geotorch.SO(size=(4, 4))
        assert manifold.in_manifold(SpecialOrthogonal().sample((4, 4)))
        assert SpecialOrthogonal().contains(manifold.sample("uniform")).all()

    @pytest.mark.parametrize("n", [1, 2, 3, 8, 64])
    def test_the_determinant_is_one_for_all_parameters(self, n):
        for scale in (0.0, 1e-6, 1.0, 1e6):
            W = SpecialOrthogonal()(scale * torch.randn(20, n, n))
            torch.testing.assert_close(torch.linalg.det(W), torch.ones(20), rtol=0, atol=1e-4)

    def test_the_projection_is_that_of_kabsch(self):
        X = torch.randn(30, 3, 3, dtype=DOUBLE)
        U, _, Vh = torch.linalg.svd(X)
        U[..., -1] *= torch.linalg.det(U @ Vh).unsqueeze(-1)
        torch.testing.assert_close(SpecialOrthogonal().project(X), U @ Vh)

    def test_g01_the_determinant_has_the_promised_sign(self):
        for seed in range(10):
            layer = nn.Linear(4, 4, bias=False)
            with torch.no_grad():
                layer.weight.normal_(generator=torch.Generator().manual_seed(seed))
            constrain(layer, "weight", "special_orthogonal")
            assert torch.linalg.det(layer.weight) > 0

    @pytest.mark.parametrize("start", [torch.eye(4), torch.diag(torch.tensor([1.0, 1, -1, -1]))])
    def test_procrustes(self, start):
        # The target is a half turn away from one start: eigenvalues -1, where charts end.
        best = torch.diag(torch.tensor([-1.0, -1.0, 1.0, 1.0]))
        noise = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
        target = best + 0.1 * noise
        optimum = SpecialOrthogonal().project(target)
        nudged = SpecialOrthogonal().project(start + 0.01 * noise)
        found = train(
            holder(nudged, SpecialOrthogonal()), lambda W: (W - target).square().sum(), steps=750
        )
        torch.testing.assert_close(found, optimum, rtol=0, atol=1e-3)


class TestUnitary:
    def test_scipy(self):
        theirs = torch.tensor(scipy.stats.unitary_group.rvs(4, size=20, random_state=0))
        assert Unitary().contains(theirs).all()
        assert torch.equal(Unitary().right_inverse(theirs), theirs)
        X = torch.randn(5, 3, dtype=torch.complex128)
        expected = torch.tensor(scipy.linalg.polar(X.numpy())[0])
        torch.testing.assert_close(Unitary()(X), expected)

    def test_g21_unitary_weights_are_trained(self):
        target = Unitary().sample((4, 4), dtype=torch.complex64)
        start = Unitary().sample((4, 4), dtype=torch.complex64)
        module = holder(start, Unitary())
        found = train(module, lambda W: (W - target).abs().square().sum(), steps=400)
        torch.testing.assert_close(found, target, rtol=0, atol=1e-3)

    def test_real_tensors_are_orthogonal(self):
        W = Unitary()(torch.randn(4, 3))
        assert W.dtype == torch.float32
        torch.testing.assert_close(W.mT @ W, torch.eye(3))


class TestGrassmann:
    def test_geoopt(self):
        W = Grassmann().sample((6, 2))
        assert geoopt.CanonicalStiefel().check_point_on_manifold(W)

    def test_the_very_basis_is_kept(self):
        for shape in ((6, 2), (2, 6), (4, 4)):
            W = Grassmann().sample(shape)
            torch.testing.assert_close(Grassmann()(*Grassmann().right_inverse(W)), W)

    def test_the_gradient_is_orthogonal_to_the_fibre(self):
        B = Grassmann().sample((6, 2), dtype=DOUBLE)
        X = torch.zeros_like(B).requires_grad_()
        G = torch.randn_like(B)
        (gradient,) = torch.autograd.grad(Grassmann()(X, B), X, G)
        torch.testing.assert_close(gradient, G - B @ (B.mT @ G))

    @pytest.mark.parametrize("wide", [False, True])
    def test_principal_components(self, wide):
        generator = torch.Generator().manual_seed(0)
        data = torch.randn(50, 6, generator=generator) * torch.tensor(
            [5.0, 4.0, 1.0, 1.0, 1.0, 0.5]
        )
        C = data.mT @ data / 50
        values, vectors = torch.linalg.eigh(C)

        def loss(W):
            W = W.mT if wide else W
            return -(W.mT @ C @ W).trace()

        start = Grassmann().sample((2, 6) if wide else (6, 2), generator=generator)
        found = train(holder(start, Grassmann()), loss)
        found = found.mT if wide else found
        assert -loss(found.mT if wide else found) > (1 - 1e-3) * values[-2:].sum()
        best = vectors[:, -2:]
        torch.testing.assert_close(found @ found.mT, best @ best.mT, rtol=0, atol=1e-2)


class TestSymplectic:
    @staticmethod
    def form(n):
        zero, one = torch.zeros(n, n, dtype=DOUBLE), torch.eye(n, dtype=DOUBLE)
        return torch.cat((torch.cat((zero, one), 1), torch.cat((-one, zero), 1)))

    def test_exponentials_of_hamiltonian_matrices_are_members(self):
        for seed in range(5):
            S = torch.randn(6, 6, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))
            W = torch.tensor(scipy.linalg.expm((self.form(3) @ (S + S.mT) / 2).numpy()))
            assert Symplectic().contains(W)
            back = Symplectic()(*Symplectic().right_inverse(W))
            torch.testing.assert_close(back, W, rtol=0, atol=1e-12 * float(W.norm()))

    def test_members_that_are_no_exponential(self):
        # diag(-2, -1/2) has no real logarithm.
        W = torch.diag(torch.tensor([-2.0, -0.5], dtype=DOUBLE))
        assert Symplectic().contains(W)
        torch.testing.assert_close(Symplectic()(*Symplectic().right_inverse(W)), W)

    @pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e3, 1e6])
    def test_the_form_is_kept_at_every_scale(self, scale):
        X, Y = scale * torch.randn(2, 8, 8, dtype=DOUBLE)
        W = Symplectic()(X, Y)
        J = self.form(4)
        assert (W.mT @ J @ W - J).abs().max() <= 1e-13 * max(1.0, float(W.norm())) ** 2
        torch.testing.assert_close(
            Symplectic()(*Symplectic().right_inverse(W)), W, rtol=0, atol=1e-13 * float(W.norm())
        )

    def test_the_determinant_is_one(self):
        W = Symplectic().sample((20, 4, 4), dtype=DOUBLE)
        torch.testing.assert_close(torch.linalg.det(W), torch.ones(20, dtype=DOUBLE))

    def test_odd_sizes_are_refused(self):
        with pytest.raises(ValueError, match="even"):
            constrain(nn.Linear(3, 3), "weight", "symplectic")
