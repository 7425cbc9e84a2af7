"""Pictures of constrained tensors: spectra, eigenvalues, simplex, sphere, and how training went.

They are drawn by matplotlib, which is imported when the first one is:
``pip install 'constrained-layers[plot]'``. Each function draws into the axes that it is given, or
into a new figure, and returns the axes; ``axes.figure.savefig("picture.png")`` saves it.
"""

from __future__ import annotations

from constrained.seeing.history import history
from constrained.seeing.pictures import eigenvalues, simplex, spectrum, sphere

__all__ = ["eigenvalues", "history", "simplex", "spectrum", "sphere"]
