"""ONNX files: what is refused and how it is said, and that saving is all or nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from secateur.errors import BadInputError
from secateur.export.onnx_file import from_onnx, save

WEIGHT = np.arange(4096, dtype=np.float32).reshape(64, 64)


def build(weight=WEIGHT):
    """y = x @ weight, then a Reshape whose target is a Constant node; no inner shapes."""
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["z"]),
        helper.make_node("Constant", [], ["target"], value_ints=[-1, 8, 8]),
        helper.make_node("Reshape", ["z", "target"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8, 8])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def plain(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(build(), path)
    return path


@pytest.fixture
def with_data(tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(build(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def relocate(path, location):
    """Let the weight of a file with external data point somewhere else."""
    proto = onnx.load(path, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = location
    path.write_bytes(proto.SerializeToString())


def refusal(path):
    with pytest.raises(BadInputError) as caught:
        from_onnx(path)
    assert str(path) in caught.value.where
    return str(caught.value)


def test_missing_file_is_named(tmp_path):
    assert "no such file" in refusal(tmp_path / "absent.onnx")


def test_folder_is_not_a_file(tmp_path):
    assert "not a file" in refusal(tmp_path)


def test_empty_file_is_called_empty(tmp_path):
    path = tmp_path / "model.onnx"
    path.touch()
    assert "empty" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [b"PK\x03\x04 a zip", b"\x80\x02}q\x00.", b"model: text\n"],
    ids=["zip", "pickle", "text"],
)
def test_other_formats_are_not_onnx(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    assert "not ONNX" in refusal(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_truncated_file_is_called_cut_off(plain, share):
    content = plain.read_bytes()
    plain.write_bytes(content[: int(len(content) * share)])
    assert "cut off" in refusal(plain)


def test_dangling_input_is_named(tmp_path):
    proto = build()
    proto.graph.node[0].input[1] = "nowhere"
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(BadInputError, match="'nowhere', which nothing makes"):
        from_onnx(path)


def test_weight_that_does_not_fill_its_shape_is_named(tmp_path):
    proto = build()
    proto.graph.initializer[0].raw_data = b"\0" * 100
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "do not fill its shape" in refusal(path)


def test_file_that_contradicts_itself_is_refused(tmp_path):
    proto = build()
    proto.graph.node[0].attribute.add(name="broken", type=onnx.AttributeProto.SPARSE_TENSORS)
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert "contradicts itself" in refusal(path)


def test_functions_are_inlined(tmp_path):
    proto = build()
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 20)]
    proto.functions.append(helper.make_function("local", "Rectify", ["a"], ["b"], body, opsets))
    proto.graph.node.append(helper.make_node("Rectify", ["y"], ["w"], domain="local"))
    proto.graph.output[0].name = "w"
    proto.opset_import.append(helper.make_opsetid("local", 1))
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    model = from_onnx(path)
    assert [node.op_type for node in model.graph] == ["MatMul", "Reshape", "Relu"]


def test_missing_external_data_is_named(with_data):
    (with_data.parent / "weights.bin").unlink()
    message = refusal(with_data)
    assert "external data is missing" in message
    assert "tensor 'weight'" in message


def test_truncated_external_data_is_named(with_data):
    data = with_data.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:100])
    assert "external data is cut off" in refusal(with_data)


def test_external_data_in_a_parent_folder_is_refused(with_data):
    secret = with_data.parent.parent / "secret.bin"
    secret.write_bytes(WEIGHT.tobytes())
    relocate(with_data, "../secret.bin")
    assert "outside the model's folder" in refusal(with_data)


def test_external_data_at_an_absolute_path_is_refused(with_data, tmp_path):
    relocate(with_data, str(tmp_path / "weights.bin"))
    assert "outside the model's folder" in refusal(with_data)


def test_external_data_through_a_symlink_out_is_refused(with_data, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "secret.bin"
    outside.write_bytes(WEIGHT.tobytes())
    data = with_data.parent / "weights.bin"
    data.unlink()
    data.symlink_to(outside)
    message = refusal(with_data)
    assert "outside the model's folder" in message
    assert "secret.bin" in message


def test_nan_weight_is_named(tmp_path):
    weight = WEIGHT.copy()
    weight[3, 5] = np.nan
    path = tmp_path / "model.onnx"
    onnx.save(build(weight), path)
    message = refusal(path)
    assert "NaN" in message
    assert "tensor 'weight'" in message


def test_nan_in_external_data_is_named(with_data):
    weight = WEIGHT.copy()
    weight[0, 0] = np.nan
    (with_data.parent / "weights.bin").write_bytes(weight.tobytes())
    assert "NaN" in refusal(with_data)


def test_input_file_is_not_touched(with_data):
    before = {path: path.read_bytes() for path in with_data.parent.iterdir()}
    model = from_onnx(with_data)
    model.graph.outputs[0].name = "renamed"
    assert {path: path.read_bytes() for path in with_data.parent.iterdir()} == before


def test_external_weights_stay_on_disk_until_read(with_data):
    tensor = from_onnx(with_data).graph.initializers["weight"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert tensor.raw is None


def test_opened_graph_is_ready_for_passes(plain):
    model = from_onnx(plain)
    assert [node.op_type for node in model.graph] == ["MatMul", "Reshape"]
    assert "target" in model.graph.initializers
    assert all(node.name for node in model.graph)
    assert [str(node.outputs[0].shape) for node in model.graph] == ["[batch,64]", "[batch,8,8]"]


def test_external_data_opens_from_another_working_folder(with_data, monkeypatch, tmp_path_factory):
    monkeypatch.chdir(with_data.parent)
    model = from_onnx(with_data.name)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert np.array_equal(model.graph.initializers["weight"].const_value.numpy(), WEIGHT)


def test_saved_model_is_valid_and_equal(plain, tmp_path):
    written = save(from_onnx(plain), tmp_path / "new" / "copy.onnx")
    assert [path.name for path in written] == ["copy.onnx"]
    onnx.checker.check_model(str(written[0]))
    again = from_onnx(written[0])
    assert np.array_equal(again.graph.initializers["weight"].const_value.numpy(), WEIGHT)


def test_large_weights_go_into_a_second_file(plain, tmp_path):
    written = save(from_onnx(plain), tmp_path / "copy.onnx", external_above_bytes=1000)
    assert re.fullmatch(r"copy\.[0-9a-f]{12}\.data", written[1].name)
    assert written[0].stat().st_size < 2000
    again = from_onnx(written[0])
    assert np.array_equal(again.graph.initializers["weight"].const_value.numpy(), WEIGHT)


def test_external_weights_move_with_the_model(with_data, tmp_path):
    written = save(from_onnx(with_data), tmp_path / "other" / "copy.onnx")
    with_data.unlink()
    (with_data.parent / "weights.bin").unlink()
    again = from_onnx(written[0])
    assert np.array_equal(again.graph.initializers["weight"].const_value.numpy(), WEIGHT)


def test_saving_over_the_opened_file_keeps_the_weights(with_data):
    model = from_onnx(with_data)
    save(model, with_data)
    assert np.array_equal(model.graph.initializers["weight"].const_value.numpy(), WEIGHT)
    again = from_onnx(with_data)
    assert np.array_equal(again.graph.initializers["weight"].const_value.numpy(), WEIGHT)


def test_saving_leaves_no_other_file(plain, tmp_path):
    save(from_onnx(plain), tmp_path / "only" / "copy.onnx")
    assert [path.name for path in (tmp_path / "only").iterdir()] == ["copy.onnx"]


def test_failed_save_leaves_the_old_file(plain, tmp_path):
    target = tmp_path / "kept.onnx"
    target.write_bytes(b"old")
    model = from_onnx(plain)
    tensor = model.graph.initializers["weight"].const_value
    model.graph.initializers["weight"].const_value = ir.LazyTensor(
        lambda: 1 / 0, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name="weight"
    )
    with pytest.raises(ir.serde.SerdeError):
        save(model, target)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.onnx", "model.onnx"]


def test_unwritable_target_is_named(plain, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BadInputError, match="cannot write the model"):
        save(from_onnx(plain), tmp_path / "file" / "copy.onnx")


KILLED = """
import sys, numpy as np, onnx_ir as ir
from secateur.export.onnx_file import from_onnx, save
model = from_onnx(sys.argv[1])
def slow():
    print("writing", flush=True)
    import time; time.sleep(60)
model.graph.initializers["weight"].const_value = ir.LazyTensor(
    slow, dtype=ir.DataType.FLOAT, shape=ir.Shape([64, 64]), name="weight")
save(model, sys.argv[2])
"""


def test_kill_during_a_save_leaves_the_old_file(plain, tmp_path):
    target = tmp_path / "kept.onnx"
    target.write_bytes(b"old")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(plain), str(target)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "writing\n"
    time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert target.read_bytes() == b"old"
