"""Formulas of LaTeX as text."""

from __future__ import annotations

import inspect
import re

import pytest

import constrained
from constrained.constraint.latex import as_text


@pytest.mark.parametrize(
    ("formula", "text"),
    [
        (r"\{W \in \mathbb{R}^{n \times p} : W^\top W = I\}", "{W ∈ ℝⁿˣᵖ : Wᵀ W = I}"),
        (r"\lVert x \rVert_2 \le \frac{c}{1 + \sqrt{n}}", "‖x‖₂ ≤ c/(1 + √n)"),
        (r"T \, P \, (S - Q / 2) \, T^{-1} - \alpha I", "T P (S − Q / 2) T⁻¹ − α I"),
        (r"\sum_{i=1}^n x_i = 1, x_{ij} \ge 0", "∑ᵢ₌₁ⁿ xᵢ = 1, xᵢⱼ ≥ 0"),
        (r"\mathrm{Re}\,\lambda \le -\alpha", "Re λ ≤ −α"),
        (r"\log\det X \ne \operatorname{rank}(W)", "log det X ≠ rank(W)"),
        (r"\|x\|_p^{2k+1}, \sup\nolimits_x f", "‖x‖ₚ²ᵏ⁺¹, supₓ f"),
        (r"\left( a \right)^\dagger, A^{-\mathsf{T}}", "( a )^†, A⁻ᵀ"),
        (r"e^{-\lambda t}, \lVert P \rVert_F, V V^*", "e^(−λ t), ‖P‖_F, V V^*"),
        (r"\sqrt[3]{x+1}, \tfrac{1}{2} (W + W')", "³√(x+1), 1/2 (W + W')"),
        (r"\foo{x}", "foox"),
        ("", ""),
        # Malformed ones do no harm.
        *((text, None) for text in ("^", "_{", "}{", r"\frac", r"\sqrt", "\\", r"\begin{cases}x")),
    ],
)
def test_formulas(formula, text):
    found = as_text(formula)
    assert found == text or (text is None and "\n" not in found)


@pytest.mark.parametrize("name", constrained.names())
def test_no_command_is_left_of_the_formulas_of_the_catalogue(name):
    for formula in re.findall(r":math:`([^`]*)`", inspect.getdoc(constrained.get(name)) or ""):
        text = as_text(formula)
        assert text
        assert not re.search(r"\\[A-Za-z]|[\ue000-\uf8ff]", text)
