"""``python -m benchmarks.steepest_stiefel [--large]``: the step of manifold Muon, three ways.

Minimize <G, A> over the tangent A at W with ||A||_2 <= 1: by the closed form, by dual ascent with a
fixed step, and by ADMM. The two iterations are written as public implementations have them, with
exact polar factors in the place of approximate ones. What they find is made feasible, by
projection onto the tangent space and division by its norm, and all three are judged by the same
relative duality gap, in double precision: that to the least dual value that anyone has found.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from constraints.math.polar import polar_factor
from constraints.math.steepest_stiefel import steepest_tangent

SIZES = ((64, 64), (256, 64), (1024, 64), (1024, 256), (3072, 128), (768, 512), (1024, 1024))
LARGE = ((2048, 1024), (3072, 1024), (3072, 2048))
ITERATIONS = 100


def sign(X: Tensor) -> Tensor:
    """The polar factor by its singular values, whatever the rank."""
    U, _, Vh = torch.linalg.svd(X, full_matrices=False)
    return U @ Vh


def tangent(W: Tensor, A: Tensor) -> Tensor:
    """The projection of A onto the tangent space."""
    along = W.mT @ A
    return A - W @ (along + along.mT) / 2


def closed_form(W: Tensor, G: Tensor) -> Tensor:
    """The steepest direction of this library."""
    return steepest_tangent(W, G).direction


def dual_ascent(W: Tensor, G: Tensor) -> Tensor:
    """Subgradient steps on the symmetric dual variable, of a fixed length that decays linearly."""
    dual = -(W.mT @ G + G.mT @ W) / 4
    A = sign(G + 2 * W @ dual)
    for i in range(ITERATIONS):
        residual = W.mT @ A + A.mT @ W
        if torch.linalg.matrix_norm(residual) / residual.shape[0] ** 0.5 < 1e-6:
            break
        dual = dual - 0.1 * (1 - i / ITERATIONS) * residual
        A = sign(G + 2 * W @ dual)
    return -A


def admm(W: Tensor, G: Tensor) -> Tensor:
    """Alternating directions with the penalty 4, on X = G + 2 W L for a symmetric L."""
    L = -(W.mT @ G + G.mT @ W) / 4
    X = G + 2 * W @ L
    D = torch.zeros_like(X)
    for _ in range(ITERATIONS):
        P = W.mT @ (D / 4 + X - G)
        L = (P + P.mT) / 4
        B = G + 2 * W @ L - D / 4
        U, s, Vh = torch.linalg.svd(B, full_matrices=False)
        X = (U * (s - 1 / 4).clamp(min=0)) @ Vh
        D = D + 4 * (X - G - 2 * W @ L)
    return -sign(G + 2 * W @ L)


def spectra(n: int, p: int) -> dict[str, Tensor]:
    """Gradients of several spectra and scales."""
    g = torch.Generator().manual_seed(1)
    noise = torch.randn(n, p, generator=g)
    thin = torch.randn(n, 8, generator=g) @ torch.randn(8, p, generator=g)
    return {
        "N(0, 1)": noise,
        "N(0, 1) x 1e-6": 1e-6 * noise,
        "N(0, 1) x 1e6": 1e6 * noise,
        "rank 8": thin,
        "rank 8 + 1e-3 N(0, 1)": thin + 1e-3 * noise,
    }


def judged(W: Tensor, G: Tensor, found: Tensor, least: float) -> tuple[float, float, float]:
    """The residual W' A + A' W, the gap after A was made feasible, the Gram error of a step."""
    W, G, A = W.double(), G.double(), found.double()
    along = W.mT @ A
    residual = float((along + along.mT).abs().max())
    A = tangent(W, A)
    A = A / torch.linalg.matrix_norm(A, 2).clamp(min=1)
    gap = 1 + float((G * A).sum()) / least
    value = polar_factor((W + 0.1 * A).float()).double()
    gram = value.mT @ value
    gram.diagonal().sub_(1)
    return residual, gap, float(gram.abs().max())


def main() -> None:
    """Print a table of all sizes, spectra and methods."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="sizes that take minutes as well")
    large = parser.parse_args().large
    torch.set_num_threads(1)
    print("| n x p | gradient | method | ms | residual | relative gap | Gram error |")
    print("|---|---|---|---|---|---|---|")
    for n, p in SIZES + (LARGE if large else ()):
        W = polar_factor(torch.randn(n, p, generator=torch.Generator().manual_seed(0)))
        for name, G in spectra(n, p).items():
            methods: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"closed form": closed_form}
            if n * p <= 2**18:
                methods |= {"dual ascent": dual_ascent, "ADMM": admm}
            elif name != "N(0, 1)" and p > 512:
                continue
            least = float(steepest_tangent(W.double(), G.double()).dual_norm)
            for method, solve in methods.items():
                solve(W, G)
                start = time.perf_counter()
                found = solve(W, G)
                ms = 1e3 * (time.perf_counter() - start)
                residual, gap, gram = judged(W, G, found, least)
                print(
                    f"| {n} x {p} | {name} | {method} | {ms:.1f} | {residual:.0e} | {gap:.0e} | "
                    f"{gram:.0e} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
