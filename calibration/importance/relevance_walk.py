"""The walk of relevance from a graph's answers back to every product that makes units.

Rules by kind of step: a product with a weight keeps the positive part of the weight and no bias
(z-plus), pooling shares out by what each input gave, activations and layout pass relevance on. A
batch norm passes it too; behind a product only the signs of its scales matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from secateur.calibration.activations import inputs_of
from secateur.calibration.importance.tape import (
    LAYOUT,
    LINEAR,
    PASSING,
    POOLING,
    Tape,
    as_tensors,
)
from secateur.errors import BadInputError, PreconditionError

if TYPE_CHECKING:
    from torch import Tensor

    from secateur.calibration.importance.tape import Values
    from secateur.export.torch_ops import Step, Value

Sums = dict[tuple[str, int], NDArray[np.float64]]

_TINY = 1e-9


def relevance_at(
    model: ir.Model,
    places: Sequence[tuple[str, int]],
    data: Iterable[Mapping[str, NDArray[Any]]],
    labels: NDArray[Any] | None,
    *,
    by_sample: bool = False,
) -> Sums:
    """Sum relevance over the data at values, along one axis of each.

    Args:
        model: gives (B, classes) scores as its first output.
        places: names of values, and the axis that is kept.
        data: batches.
        labels: (samples,) class of every sample, or None for the model's own answers.
        by_sample: sum absolute values of what each sample gives.

    Raises:
        BadInputError: no data, or labels that do not fit it.
        PreconditionError: a step without a rule, named with its node; no class scores.
    """
    tape, sums, start = Tape(model), {place: np.zeros(1) for place in places}, 0
    for batch in data:
        values = tape.forward(as_tensors(inputs_of(batch)))
        answer = values[tape.output]
        begin = _one_hot(answer, labels, start)
        start += len(begin)
        found = Walk(tape, values).back(begin)
        for name, axis in places:
            relevance = found[name].double().numpy()
            others = tuple(i for i in range(1, relevance.ndim) if i != axis)
            each = relevance.sum(axis=others)  # (B, units)
            sums[name, axis] = sums[name, axis] + (np.abs(each) if by_sample else each).sum(axis=0)
    if not start:
        raise BadInputError("this criterion needs data, and there is none")
    if labels is not None and len(labels) != start:
        raise BadInputError(
            "there are not as many labels as samples", got=str(len(labels)), wanted=str(start)
        )
    return sums


def _one_hot(answer: Value | None, labels: NDArray[Any] | None, start: int) -> Tensor:
    """(B, classes): 1 at the class of each sample."""
    import torch

    if not isinstance(answer, torch.Tensor) or answer.ndim != 2 or answer.shape[1] < 2:
        raise PreconditionError(
            "relevance starts at the score of a class, and the first output has none",
            wanted="(batch, classes)",
        )
    answer = answer.detach()
    if labels is None:
        classes = answer.argmax(dim=1)
    else:
        part = np.asarray(labels)[start : start + len(answer)]
        fits = len(part) == len(answer) and part.dtype.kind in "iu"
        if not fits or part.min() < 0 or part.max() >= answer.shape[1]:
            raise BadInputError(
                "the labels do not fit the data",
                got=f"{len(labels)} of type {part.dtype}",
                wanted=f"a whole number below {answer.shape[1]} for every sample",
            )
        classes = torch.from_numpy(part.astype(np.int64))
    return torch.eye(answer.shape[1], dtype=answer.dtype)[classes]


class Walk:
    """One batch on its way back."""

    def __init__(self, tape: Tape, values: Values) -> None:
        self._tape, self._values = tape, values
        self._found: dict[str, Tensor] = {}
        self._signs: dict[str, Tensor] = {}

    def back(self, begin: Tensor) -> dict[str, Tensor]:
        """Relevance of every value between the answers and the inputs."""
        self._found = {self._tape.output: begin}
        for step in reversed(self._tape.steps):
            arrived = [self._found.get(name) for name in step.outputs]
            if any(one is not None for one in arrived):
                self._step(step, arrived)
        return self._found

    def _step(self, step: Step, arrived: list[Tensor | None]) -> None:
        inputs = self._tape.inputs(step, self._values, {})
        data = self._data(step, inputs)
        weights = self._tape.weights(step)
        relevance = arrived[0]
        if step.op in LAYOUT:
            self._turned(step, inputs, arrived)
        elif relevance is None or not data:
            return
        elif step.op in LINEAR and len(data) == 1:
            self._shared(step, self._positive(step, inputs, weights), relevance)
        elif step.op in POOLING:
            self._shared(step, inputs, relevance)
        elif step.op == "Add" and len(data) == 2:
            self._split(step, data, relevance)
        elif step.op in PASSING | {"BatchNormalization"} or (step.op == "Add" and weights):
            if step.op == "BatchNormalization":
                self._signs[str(step.inputs[0])] = weights[1].sign()
            self._give(str(step.inputs[next(iter(data))]), relevance)
        else:
            raise PreconditionError(
                f"relevance has no rule for {step.op} here",
                where=step.node,
                got="a product of two computed values" if len(data) > 1 else "",
                wanted="convolutions, linear layers, ReLU, pooling, batch norms and sums",
                next_step="rank by taylor with gradients, or by wanda",
            )

    def _data(self, step: Step, inputs: Sequence[Value | None]) -> dict[int, Tensor]:
        """Computed floating-point inputs by slot."""
        import torch

        return {
            slot: value.detach()
            for slot, (source, value) in enumerate(zip(step.inputs, inputs, strict=True))
            if isinstance(source, str)
            and isinstance(value, torch.Tensor)
            and value.is_floating_point()
        }

    def _give(self, name: str, relevance: Tensor) -> None:
        known = self._found.get(name)
        self._found[name] = relevance if known is None else known + relevance

    def _positive(
        self, step: Step, inputs: Sequence[Value | None], weights: Mapping[int, Tensor]
    ) -> tuple[Value | None, ...]:
        """The inputs of a product with the positive part of its weight, and without a bias."""
        changed = list(inputs)
        slot = 0 if isinstance(step.inputs[1], str) else 1
        weight = weights[slot]
        signs = self._signs.get(step.outputs[0])
        if signs is not None:
            axis = 0 if step.op == "Conv" or step.attributes.get("transB") else weight.ndim - 1
            weight = weight * signs.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
        changed[slot] = weight.clamp(min=0)
        return (*changed[:2], *(None for _ in changed[2:]))

    def _shared(self, step: Step, inputs: tuple[Value | None, ...], relevance: Tensor) -> None:
        """Share out in proportion to what each input number gave."""
        import torch

        ((slot, value),) = self._data(step, inputs).items()
        value.requires_grad_()
        changed = tuple(value if i == slot else other for i, other in enumerate(inputs))
        made = self._tape.run(step, changed)[0]
        assert isinstance(made, torch.Tensor)
        share = (relevance / (made + _TINY)).detach()
        (back,) = torch.autograd.grad(made, value, share)
        self._give(str(step.inputs[slot]), (value * back).detach())

    def _turned(
        self, step: Step, inputs: tuple[Value | None, ...], arrived: list[Tensor | None]
    ) -> None:
        """Send relevance back to where each number came from."""
        import torch

        data = self._data(step, inputs)
        for value in data.values():
            value.requires_grad_()
        made = self._tape.run(step, tuple(data.get(i, x) for i, x in enumerate(inputs)))
        pairs = [(x, r) for x, r in zip(made, arrived, strict=False) if r is not None]
        outputs = [x for x, _ in pairs if isinstance(x, torch.Tensor)]
        if not data or not outputs:
            return
        found = torch.autograd.grad(outputs, list(data.values()), [r for _, r in pairs])
        for slot, relevance in zip(data, found, strict=True):
            self._give(str(step.inputs[slot]), relevance)

    def _split(self, step: Step, data: Mapping[int, Tensor], relevance: Tensor) -> None:
        """Share a sum out by the positive parts of what it adds."""
        parts = {slot: value.clamp(min=0) for slot, value in data.items()}
        total = sum(parts.values(), start=relevance.new_zeros(())) + _TINY
        for slot, part in parts.items():
            given = part / total * relevance
            if given.shape != part.shape or part.shape != data[slot].shape:
                raise PreconditionError(
                    "relevance has no rule for a sum that repeats", where=step.node
                )
            self._give(str(step.inputs[slot]), given)


__all__ = ["Walk", "relevance_at"]
