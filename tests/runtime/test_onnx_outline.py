"""Reading an ONNX file without the onnx package, and saying what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from secateur.errors import BadInputError
from secateur.runtime.onnx_outline import read_outline


def test_inputs_outputs_and_operators_are_read(selecting_path: Path) -> None:
    outline = read_outline(selecting_path)
    described = {info.name: (info.describe(), info.optional) for info in outline.inputs}
    assert described == {
        "x": ("float32[batch, tokens, 8]", False),
        "encoder.layer.0.k": ("int64[1]", False),
        "encoder.layer.0.score_bias": ("float32[bias.rows, bias.columns]", True),
    }
    assert [info.describe() for info in outline.outputs] == ["float32[batch, kept, 8]"]
    assert outline.operators == (
        "Add", "GatherND", "MatMul", "Slice", "Squeeze", "TopK", "Unsqueeze",
    )  # fmt: skip
    assert outline.opset == 20
    assert outline.constants["w"] == "float32"
    assert outline.constants["zero"] == "int64"
    assert "secateur.sites" in outline.metadata


def test_the_outline_agrees_with_the_onnx_package_on_every_node(selecting_path: Path) -> None:
    wanted = [
        (node.name, node.op_type, tuple(node.input), tuple(node.output))
        for node in onnx.load(selecting_path).graph.node
    ]
    outline = read_outline(selecting_path)
    assert [(n.name, n.operator, n.inputs, n.outputs) for n in outline.nodes] == wanted


def test_a_node_tells_its_module(dense_path: Path) -> None:
    model = onnx.load(dense_path)
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'encoder.ffn', 'matmul']"
    onnx.save(model, dense_path)
    outline = read_outline(dense_path)
    assert outline.module_of("up") == "encoder.ffn"
    assert outline.module_of("down") == ""


def test_a_node_name_with_slashes_tells_its_module(dense_path: Path) -> None:
    model = onnx.load(dense_path)
    model.graph.node[0].name = "/encoder/layer.0/MatMul"
    onnx.save(model, dense_path)
    assert read_outline(dense_path).module_of("/encoder/layer.0/MatMul") == "encoder.layer.0"


@pytest.mark.parametrize("scopes", ["[", "3", "['', 'x']", "__import__('os')"])
def test_scopes_that_say_nothing_are_left_alone(scopes: str, dense_path: Path) -> None:
    model = onnx.load(dense_path)
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", scopes
    onnx.save(model, dense_path)
    assert read_outline(dense_path).module_of("up") == ""


def test_nodes_of_subgraphs_count(tmp_path: Path) -> None:
    def branch(operator: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(operator, ["x"], ["o"])], operator, [], [out])

    node = helper.make_node(
        "If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Neg")
    )
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [2]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )
    path = tmp_path / "if.onnx"
    onnx.save(helper.make_model(graph), path)
    assert read_outline(path).operators == ("If", "Neg", "Relu")


def test_external_data_is_found(external_path: Path) -> None:
    data = read_outline(external_path).external
    assert {(d.tensor, d.location) for d in data} == {
        ("w1", "weights.data"),
        ("w2", "weights.data"),
    }


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="does not exist"):
        read_outline(tmp_path / "none.onnx")


NOT_ONNX = {
    "empty": b"",
    "text": b"this is a text file, not a model\n" * 9,
    "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "safetensors": (80).to_bytes(8, "little") + b'{"w":{"dtype":"F32"}}' + bytes(90),
    "zeros": bytes(64),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(range(64)),
}


@pytest.mark.parametrize("kind", NOT_ONNX)
def test_a_file_that_is_not_onnx_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(NOT_ONNX[kind])
    with pytest.raises(BadInputError, match="not an ONNX model"):
        read_outline(path)


def test_a_truncated_file_is_refused_wherever_it_was_cut(selecting_path: Path) -> None:
    whole = selecting_path.read_bytes()
    end = whole.index(b"secateur.sites") - 8  # metadata comes last and may be absent
    for cut in range(1, end, 7):
        selecting_path.write_bytes(whole[:cut])
        with pytest.raises(BadInputError) as caught:
            read_outline(selecting_path)
        assert str(selecting_path) in caught.value.where, cut


def test_a_file_cut_in_its_graph_is_called_cut_short(selecting_path: Path) -> None:
    whole = selecting_path.read_bytes()
    selecting_path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInputError, match="cut short"):
        read_outline(selecting_path)


def test_missing_external_data_is_refused(external_path: Path) -> None:
    (external_path.parent / "weights.data").unlink()
    with pytest.raises(BadInputError, match="external data file is missing"):
        read_outline(external_path)


def test_truncated_external_data_is_refused(external_path: Path) -> None:
    data = external_path.parent / "weights.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(BadInputError, match="external data file is cut short"):
        read_outline(external_path)


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "a/../../secret", ""])
def test_external_data_outside_the_folder_is_refused(location: str, external_path: Path) -> None:
    (external_path.parent.parent / "secret").write_bytes(bytes(10_000))
    _relocate(external_path, location)
    with pytest.raises(BadInputError, match="outside its folder"):
        read_outline(external_path)


def test_external_data_behind_a_link_out_of_the_folder_is_refused(external_path: Path) -> None:
    secret = external_path.parent.parent / "secret"
    secret.write_bytes(bytes(10_000))
    (external_path.parent / "weights.data").unlink()
    (external_path.parent / "weights.data").symlink_to(secret)
    with pytest.raises(BadInputError, match="outside its folder"):
        read_outline(external_path)


def _relocate(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for initialiser in model.graph.initializer:
        for entry in initialiser.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
