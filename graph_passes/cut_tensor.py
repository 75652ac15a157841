"""A weight of which only some positions are kept, taken when it is read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.weights import array_of, take


class CutTensor(ir.LazyTensor):
    """The kept positions of a tensor, which are taken whenever it is read."""

    __slots__ = ("_kept", "_whole")

    def __init__(
        self,
        whole: ir.TensorProtocol,
        kept: Mapping[int, NDArray[np.int64]],
        shape: ir.Shape,
        name: str,
    ) -> None:
        self._whole, self._kept = whole, kept
        super().__init__(
            lambda: ir.Tensor(take(array_of(whole), kept), whole.dtype, shape=shape),
            whole.dtype,
            shape,
            name=name,
        )

    def numpy(self) -> np.ndarray:
        """Return the kept positions; nothing holds on to them."""
        return take(array_of(self._whole), self._kept)


__all__ = ["CutTensor"]
