"""The residual stream turned by a Hadamard matrix that is fused into the weights around it.

Source: QuaRot (Ashkboos et al., arXiv:2404.00456, section 4, stage 1a), as RSQ (Sung et al.,
arXiv:2503.01820) uses it: outliers of single channels are spread over all of them, and rounding
loses less. The model computes the same. Widths that are no power of two take a Hadamard matrix of
the largest power of two inside, times a random orthogonal one; there the authors' code looks up
Hadamard matrices of other sizes. The turns inside the attention and before the down projection,
which have to be computed while the model runs, are left out.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.quantisation.rotation_walk import Stream
from secateur.errors import PreconditionError
from secateur.graph_passes.groups import analyse

Array: TypeAlias = NDArray[np.float64]


def rotate(model: ir.Model, *, seed: int = 0) -> ir.Model:
    """Return the model with its residual streams turned; its outputs are the same.

    The scales of the norms go into the weights that read them. Norms have to be taken over squares
    alone (RMSNorm), since a turn keeps lengths and no means.

    Args:
        model: stays as it is; pre-norm.
        seed: of the signs.

    Raises:
        PreconditionError: no residual stream, or something reads it in its own basis: a
            LayerNorm, an activation, a graph output; named with its node.
    """
    analysis = analyse(model)
    groups = [group for group in analysis.by_role("residual") if group.weights]
    if not groups:
        raise PreconditionError("the model has no residual stream to rotate")
    for group in groups:
        stream = Stream(analysis, group.atom, orthogonal(group.size, seed))
        for node in list(analysis.model.graph):
            stream.visit(node)
        stream.check_outputs()
    return analysis.model


def orthogonal(size: int, seed: int = 0) -> Array:
    """Return an orthogonal (size, size) matrix: Hadamard with random signs, for powers of two."""
    rng = np.random.default_rng(seed)
    power = size & -size
    matrix = np.ones((1, 1))
    while len(matrix) < power:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= np.sqrt(power)
    odd, _ = np.linalg.qr(rng.standard_normal((size // power, size // power)))
    signs = rng.choice([-1.0, 1.0], size)
    turned: Array = signs[:, None] * np.kron(odd, matrix)
    return turned


__all__ = ["orthogonal", "rotate"]
