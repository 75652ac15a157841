"""Engines and libraries that do not fit: what is said, before and after the library is asked."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import onnx
import pytest
from tests.runtime.conftest import make_selecting

from secateur.errors import BadInputError, MissingDependencyError
from secateur.runtime.bundle import open_bundle
from secateur.runtime.bundle_writer import revised_bundle
from secateur.runtime.tensorrt.api import Message, load
from secateur.runtime.tensorrt.engine import cannot_open

# As TensorRT 10 and TensorRT-RTX say it.
SAID = {
    "another version": "The engine plan file is not compatible with this version of TensorRT, "
    "expecting library version 10.3.0.30 got 10.13.3.9, please rebuild.",
    "another version or damaged": "Serialization assertion stdVersionRead == kSERIALIZATION_VERSION"
    " failed.",
    "no engine": "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Magic tag does "
    "not match)",
    "another GPU": "The engine plan file is generated on an incompatible device, expecting "
    "compute 8.7 got compute 8.6, please rebuild. (compute capability)",
    "memory": "Requested amount of GPU memory (4294967296 bytes) could not be allocated.",
}
MEANT = {
    "another version": "another version of TensorRT",
    "another version or damaged": "another version, or the file is damaged",
    "no engine": "no engine, or it is damaged",
    "another GPU": "another GPU",
    "memory": "too little free memory",
}


@pytest.mark.parametrize("case", SAID)
def test_what_the_library_says_of_an_engine_is_told_in_words_and_as_it_was_said(case):
    trt = SimpleNamespace(__version__="10.3.0")
    error = cannot_open(trt, [Message("error", SAID[case]), Message("info", "hello")])
    assert MEANT[case] in error.where
    assert SAID[case] in error.got
    assert "10.3.0" in error.wanted
    assert "secateur.runtime build" in error.next_step


def test_an_unknown_message_is_shown_as_it_is():
    error = cannot_open(SimpleNamespace(__version__="10.3.0"), [Message("error", "odd")])
    assert (error.where, error.got) == ("", "odd")
    silent = cannot_open(SimpleNamespace(__version__="10.3.0"), [])
    assert silent.got == "no message"


def test_bindings_without_libnvinfer_are_told_from_a_library_that_is_not_there(
    tmp_path, monkeypatch
):
    text = "libnvinfer.so.10: cannot open shared object file: No such file or directory"
    (tmp_path / "tensorrt.py").write_text(f"raise ImportError({text!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependencyError, match="installed but") as caught:
        load("tensorrt")
    assert caught.value.got == text
    assert "the bindings alone are not enough" in caught.value.next_step
    (tmp_path / "tensorrt.py").unlink()
    with pytest.raises(MissingDependencyError, match="not installed"):
        load("tensorrt")


def test_an_engine_of_another_model_with_the_same_shapes_is_refused(bundle_path, tmp_path):
    from secateur.runtime.backend import Built

    digest = open_bundle(bundle_path).manifest.files["model.onnx"].sha256
    record = {"onnx_sha256": {"model.onnx": digest}}
    with revised_bundle(bundle_path) as draft:
        draft.add_engine("rtx:sm86", Built(b"an engine", record), requires="==1.7")
    assert open_bundle(bundle_path).engine("rtx:sm86")
    other = make_selecting()
    weight = next(w for w in other.graph.initializer if w.name == "w")
    values = onnx.numpy_helper.to_array(weight) * 2
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(other, tmp_path / "other.onnx")
    with revised_bundle(bundle_path) as draft:
        draft.place_model("model.onnx", tmp_path / "other.onnx")
    with pytest.raises(BadInputError, match="built from another model") as caught:
        open_bundle(bundle_path).engine("rtx:sm86")
    assert digest in caught.value.got
