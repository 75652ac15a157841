"""PyTorch to ONNX through ``torch.export``: names kept, dynamic sizes proven, numbers compared."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from secateur.errors import BadInputError
from secateur.export import (
    attention_translation,
    dimension_names,
    parameter_names,
    scan_translation,
    simplify,
    sorting_translation,
    torchlib_cache,
    trainable,
    verify,
)
from secateur.export.dimension_names import Dynamic
from secateur.export.marker_translation import marker_translations, without_markers

DIMENSIONS_KEY = "secateur.dimensions"
EXPORT_KEY = "secateur.export"
OPSETS = range(18, 25)

logger = logging.getLogger(__name__)


def from_torch(
    net: nn.Module,
    inputs: dict[str, Tensor],
    dynamic: Dynamic,
    *,
    opset: int = 20,
    for_training: bool = False,
) -> ir.Model:
    """Export ``net`` and prove the result equal to it at two other shapes.

    The module is run in evaluation mode and left in the mode it came in. At opset 23 and
    above scaled dot-product attention becomes one ``Attention`` node, below it becomes
    MatMul, Softmax and MatMul.

    Args:
        net: the module; its forward takes the names in ``inputs`` and returns tensors.
        inputs: example inputs by argument name; dynamic axes of size 1 are repeated to 2
            before tracing, because torch treats 0 and 1 as constants.
        dynamic: which axes may vary, ``{input: {axis: dimension name}}``; the same name
            means the same size.
        opset: ai.onnx version of the result, 18 to 24.
        for_training: keep what training needs and inference does not: batch norms as nodes
            of their own, not folded into the convolution before them, and biases of zero.

    Raises:
        BadInputError: inputs that do not fit, or a declared dimension that the model fixes.
        ParityError: ONNX Runtime and PyTorch disagree.
        MissingDependencyError: onnxruntime is not installed.
    """
    _check_arguments(net, inputs, dynamic, opset)
    with _evaluation_mode(net), torch.no_grad():
        example = _at_least_two(inputs, dynamic)
        program, names = _capture(net, example, dynamic)
        parameters = frozenset(name for name, _ in net.named_parameters())
        with trainable.kept(parameters) if for_training else contextlib.nullcontext():
            model = _translate(net, program, example, opset)
        dimension_names.rename(model, names)
        dimension_names.check(model, dynamic)
        dimension_names.check_outputs(model, dimension_names.output_dims(program, names))
        model = simplify.simplify(model)
        parameter_names.record(model, parameter_names.parameter_names(model, net))
        ranges = dimension_names.ranges(program, names)
        model.metadata_props[DIMENSIONS_KEY] = json.dumps(ranges, sort_keys=True)
        _compare(net, program.module(), model, example, dynamic)
    return model


def _check_arguments(
    net: nn.Module, inputs: dict[str, Tensor], dynamic: Dynamic, opset: int
) -> None:
    if opset not in OPSETS:
        raise BadInputError(
            "unsupported opset", got=str(opset), wanted=f"{OPSETS.start} to {OPSETS.stop - 1}"
        )
    if not inputs:
        raise BadInputError("no example inputs", wanted="at least one tensor by argument name")
    _check_forward(net, inputs)
    for name, parameter in net.named_parameters():
        if bool(parameter.isnan().any()):
            raise BadInputError(
                "a weight holds NaN",
                where=f"parameter {name!r}",
                got=f"{int(parameter.isnan().sum())} NaN among its values",
                next_step="load a checkpoint that is whole",
            )
    for name, axes in dynamic.items():
        if name not in inputs:
            raise BadInputError(
                f"unknown input {name!r} in `dynamic`", wanted="one of " + ", ".join(inputs)
            )
        rank = inputs[name].dim()
        for axis, dimension in axes.items():
            if not 0 <= axis < rank:
                raise BadInputError(
                    f"axis {axis} of `dynamic` does not exist",
                    where=f"input {name!r}",
                    got=f"rank {rank}",
                    wanted=f"an axis from 0 to {rank - 1}",
                )
            if not dimension.isidentifier():
                raise BadInputError(
                    "a dimension needs a plain name", where=f"input {name!r}", got=dimension
                )


def _check_forward(net: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Every input has to be an argument by name: torch cannot give ``**kwargs`` dynamic axes."""
    signature = inspect.signature(net.forward)
    named = [
        p.name
        for p in signature.parameters.values()
        if p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}
    ]
    problem = ", ".join(name for name in inputs if name not in named)
    try:
        signature.bind(**inputs)
    except TypeError as error:
        problem = problem or str(error)
    if problem:
        raise BadInputError(
            "the example inputs do not fit the model's forward",
            where=type(net).__name__,
            got=problem,
            wanted="arguments among " + ", ".join(named),
        )


@contextlib.contextmanager
def _evaluation_mode(net: nn.Module) -> Iterator[None]:
    """Switch every module to evaluation, and back to what each of them was."""
    training = [module for module in net.modules() if module.training]
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # one operator that ONNX does not have
    net.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
        for module in training:
            module.training = True


def _at_least_two(inputs: dict[str, Tensor], dynamic: Dynamic) -> dict[str, Tensor]:
    sizes = {
        name: max(2, inputs[input_name].shape[axis])
        for input_name, axes in dynamic.items()
        for axis, name in axes.items()
    }
    return verify.resized(inputs, dynamic, sizes)


def _capture(
    net: nn.Module, example: dict[str, Tensor], dynamic: Dynamic
) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """Trace, and return with the program the user's name of every symbol.

    The first trace finds which sizes the model allows; the second one declares them, and then
    torch refuses a model whose code depends on the traced size (``int(n * 0.7)``).
    """
    free = _trace(net, example, dynamic, lambda _: torch.export.Dim.DYNAMIC)
    names = dimension_names.symbol_names(free, dynamic)
    limits = dimension_names.ranges(free, names)
    if not limits:
        return free, names
    declared = {
        name: torch.export.Dim(name, min=low, max=high) for name, (low, high) in limits.items()
    }
    program = _trace(net, example, dynamic, declared.__getitem__)
    return program, dimension_names.symbol_names(program, dynamic)


def _trace(
    net: nn.Module,
    example: dict[str, Tensor],
    dynamic: Dynamic,
    dimension: Callable[[str], object],
) -> torch.export.ExportedProgram:
    shapes = {
        name: {axis: dimension(dim) for axis, dim in dynamic.get(name, {}).items()}
        for name in example
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch about its own pytree
            return torch.export.export(net, (), kwargs=example, dynamic_shapes=shapes)
    except torch._dynamo.exc.UserError as error:  # noqa: SLF001 - torch has no public name for it
        raise BadInputError(
            "torch.export cannot keep a declared dimension dynamic",
            where=type(net).__name__,
            got=" ".join(str(error).split())[:600],
            wanted=f"the dimensions {dynamic} to stay free",
            next_step="compute sizes with integer arithmetic on tensor shapes (not int(n * 0.7)), "
            "or leave the dimension out of `dynamic`",
        ) from error


def _translate(
    net: nn.Module, program: torch.export.ExportedProgram, example: dict[str, Tensor], opset: int
) -> ir.Model:
    output_names = list(verify.flatten_outputs(net(**example)))
    table: dict[Any, Any] = {
        **attention_translation.translations(opset),
        **sorting_translation.translations(opset),
        **marker_translations(),
        **scan_translation.translations(opset),
    }
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)  # it warns about torchvision in every process
    try:
        with warnings.catch_warnings(), torchlib_cache.compiled_once():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                (),
                kwargs=example,
                opset_version=opset,
                custom_translation_table=table,
                dynamo=True,
                verbose=False,
            )
    finally:
        registration.setLevel(level)
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    clash = set(output_names) & set(example)
    _name_outputs(exported.model, [f"{n}_out" if n in clash else n for n in output_names])
    for value, name in zip(
        exported.model.graph.inputs, program.graph_signature.user_inputs, strict=True
    ):
        value.name = str(name)  # torch renames an input that is also an output
    return exported.model


def _name_outputs(model: ir.Model, names: list[str]) -> None:
    """Name the outputs; one that is an input, or that is given twice, gets a node of its own."""
    outputs = model.graph.outputs
    if len(outputs) != len(names):
        raise BadInputError(
            "the exported graph has other outputs than the model",
            got=str(len(outputs)),
            wanted=f"{len(names)}: {', '.join(names)}",
            next_step="return only tensors, or containers of tensors",
        )
    seen: set[ir.Value] = set(model.graph.inputs)
    for i, value in enumerate(outputs):
        if value in seen or value.is_initializer():
            copy = ir.node("Identity", [value])
            copy.outputs[0].shape, copy.outputs[0].type = value.shape, value.type
            model.graph.append(copy)
            outputs[i] = copy.outputs[0]
        seen.add(outputs[i])
    taken = {value.name: value for node in model.graph for value in node.outputs}
    for value, name in zip(outputs, names, strict=True):
        if name in taken and taken[name] is not value:
            taken[name].name = f"{name}_inner"
        value.name = name


def _compare(
    net: nn.Module, dense: nn.Module, model: ir.Model, example: dict[str, Tensor], dynamic: Dynamic
) -> None:
    """Compare at two other shapes, or at the traced one where nothing may vary."""
    traced = {
        name: example[input_name].shape[axis]
        for input_name, axes in dynamic.items()
        for axis, name in axes.items()
    }
    runnable = without_markers(model)
    # A model with markers really drops tokens when it is called; its traced program keeps them.
    reference = net if runnable is model else dense
    ranges = json.loads(model.metadata_props[DIMENSIONS_KEY])
    settings = verify.other_sizes(traced, ranges) if traced else (traced,)
    checks = [
        verify.compare(reference, runnable, verify.resized(example, dynamic, sizes), sizes)
        for sizes in settings
    ]
    model.metadata_props[EXPORT_KEY] = json.dumps(
        {
            "torch": torch.__version__,
            "traced": traced,
            "checks": [{"sizes": check.sizes, "errors": check.errors} for check in checks],
        },
        sort_keys=True,
    )
    logger.info("exported %d nodes; checked at %s", len(model.graph), settings)


__all__ = ["from_torch"]
