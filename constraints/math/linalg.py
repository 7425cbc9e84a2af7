"""The functions of `torch.linalg` that the catalogue uses, with types."""

from constrained.torch_internals.linalg import (
    LinAlgError as LinAlgError,
)
from constrained.torch_internals.linalg import (
    cholesky_ex as cholesky_ex,
)
from constrained.torch_internals.linalg import (
    eig as eig,
)
from constrained.torch_internals.linalg import (
    eigh as eigh,
)
from constrained.torch_internals.linalg import (
    eigvals as eigvals,
)
from constrained.torch_internals.linalg import (
    eigvalsh as eigvalsh,
)
from constrained.torch_internals.linalg import (
    inv_ex as inv_ex,
)
from constrained.torch_internals.linalg import (
    matrix_exp as matrix_exp,
)
from constrained.torch_internals.linalg import (
    matrix_norm as matrix_norm,
)
from constrained.torch_internals.linalg import (
    qr as qr,
)
from constrained.torch_internals.linalg import (
    slogdet as slogdet,
)
from constrained.torch_internals.linalg import (
    solve as solve,
)
from constrained.torch_internals.linalg import (
    solve_triangular as solve_triangular,
)
from constrained.torch_internals.linalg import (
    svd as svd,
)
from constrained.torch_internals.linalg import (
    svdvals as svdvals,
)
from constrained.torch_internals.linalg import (
    vecdot as vecdot,
)
from constrained.torch_internals.linalg import (
    vector_norm as vector_norm,
)
