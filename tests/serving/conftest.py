"""Bundles of small selecting transformers, and Triton's own description of a configuration."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from google.protobuf import text_format
from google.protobuf.message import Message
from tests.passes.selection.models import Variant, build
from tests.passes.selection.support import insert, selections

from secateur.graph_passes.selection.budget import Budget
from secateur.runtime.backend import Built, EngineSpec, ShapeRange
from secateur.runtime.bundle_writer import new_bundle

MASKED = Variant(pool="mask")
PROFILES = {
    "x": ShapeRange((1, 4, 16), (4, 9, 16), (8, 12, 16)),
    "mask": ShapeRange((1, 4), (4, 9), (8, 12)),
}


SHARE = Budget()


def selecting(budget: Budget = SHARE, variant: Variant = MASKED) -> onnx.ModelProto:
    """Two selections in a transformer of three layers, written without torch."""
    return insert(build(variant), selections((0, 1), budget=budget))


def write_bundle(path: Path, model: onnx.ModelProto, optimisation: str = "all") -> Path:
    """A bundle for ONNX Runtime, with an engine for tensorrt that nothing opens."""
    file = path.parent / "source.onnx"
    onnx.save(model, file)
    names = {value.name for value in model.graph.input}
    spec = EngineSpec(profiles={n: span for n, span in PROFILES.items() if n in names})
    with new_bundle(path) as draft:
        draft.place_model("model.onnx", file)
        draft.manifest = replace(draft.manifest, spec=spec)
        draft.add_onnxruntime(optimisation=optimisation)
        draft.add_engine("tensorrt", Built(b"an engine", {}), requires="==10.13.3")
    return path


@pytest.fixture
def masked(tmp_path: Path) -> Path:
    """A bundle whose samples keep numbers of tokens of their own."""
    return write_bundle(tmp_path / "masked", selecting())


@pytest.fixture
def unmasked(tmp_path: Path) -> Path:
    """A bundle that keeps one number of tokens for a whole batch."""
    return write_bundle(tmp_path / "unmasked", selecting(variant=Variant(mask="none")))


@pytest.fixture(scope="session")
def model_config() -> ModuleType:
    """Triton's message classes, from the file alone: the package wants other versions of ours."""
    try:
        files = metadata.files("tritonclient") or ()
    except metadata.PackageNotFoundError:
        pytest.fail("tritonclient is not installed: `make setup` does it, without its dependencies")
    found = next(f for f in files if str(f) == "tritonclient/grpc/model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", str(found.locate()))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def parse(model_config: ModuleType) -> Callable[[Path], Message]:
    """Read the configuration of a served model; an unknown field or type is an error."""

    def read(folder: Path) -> Message:
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        return text_format.Parse(text, model_config.ModelConfig())

    return read
