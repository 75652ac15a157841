"""Weights that are larger than memory should be: read, cut and written one at a time."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnx_ir as ir
import pytest

from secateur.export.onnx_file import from_onnx, save
from secateur.weights import array_of, bytes_of, take

LAYERS, WIDTH = 48, 1024
TENSOR_BYTES = WIDTH * WIDTH * 4

CHILD = """
import json, sys
from pathlib import Path
import numpy as np
from secateur.export.onnx_file import from_onnx, save
from secateur.graph_passes.groups import analyse
from secateur.graph_passes.plan import make_plan
from secateur.graph_passes.removal import remove

def peak():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if "VmHWM" in line)

before = peak()
model = from_onnx(sys.argv[1])
analysis = analyse(model)
keep = {g.name: tuple(range(0, g.size, 2)) for g in analysis.groups if g.removable}
small = remove(model, make_plan(analysis, keep))
written = save(small, sys.argv[2], external_above_bytes=1 << 20)
print(json.dumps({"grew": peak() - before, "groups": len(keep),
                  "written": sum(path.stat().st_size for path in written)}))
"""


@pytest.fixture
def chain(tmp_path):
    """y = x @ w0 -> Relu -> @ w1 -> ...: 200 MB of weights in 48 tensors beside the model."""
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="chain")
    value = ir.Value(
        name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", WIDTH])
    )
    graph.inputs.append(value)
    rng = np.random.default_rng(0)
    with (tmp_path / "dense.data").open("wb") as file:
        for layer in range(LAYERS):
            file.write(rng.standard_normal((WIDTH, WIDTH), np.float32).tobytes())
            weight = ir.Value(name=f"w{layer}", type=ir.TensorType(ir.DataType.FLOAT))
            weight.shape = ir.Shape([WIDTH, WIDTH])
            weight.const_value = ir.ExternalTensor(
                "dense.data",
                layer * TENSOR_BYTES,
                TENSOR_BYTES,
                ir.DataType.FLOAT,
                shape=ir.Shape([WIDTH, WIDTH]),
                name=f"w{layer}",
                base_dir=tmp_path,
            )
            graph.register_initializer(weight)
            for op_type, inputs in (("MatMul", [weight]), ("Relu", [])):
                node = ir.node(op_type, [value, *inputs])
                graph.append(node)
                value = node.outputs[0]
                value.name = f"{op_type}{layer}"
    value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["batch", WIDTH])
    graph.outputs.append(value)
    ir.save(ir.Model(graph, ir_version=10), tmp_path / "dense.onnx")
    return tmp_path / "dense.onnx"


def test_pruning_holds_a_few_tensors_in_memory_at_a_time(chain, tmp_path):
    command = [sys.executable, "-c", CHILD, str(chain), str(tmp_path / "small.onnx")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["groups"] == LAYERS - 1
    assert found["written"] < 0.3 * LAYERS * TENSOR_BYTES
    assert found["grew"] < 0.4 * LAYERS * TENSOR_BYTES
    first = array_of(from_onnx(chain).graph.initializers["w1"].const_value)
    small = from_onnx(tmp_path / "small.onnx").graph.initializers["w1"].const_value
    assert np.array_equal(small.numpy(), first[::2, ::2])


def test_an_array_of_an_external_tensor_leaves_the_tensor_unopened(chain):
    tensor = from_onnx(chain).graph.initializers["w0"].const_value
    assert array_of(tensor).shape == (WIDTH, WIDTH)
    assert tensor.raw is None


@pytest.mark.parametrize("seed", range(20))
def test_taking_positions_equals_taking_them_axis_by_axis(seed):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((12, 18, 8)).astype(np.float16)
    kept, wanted = {}, array
    for axis in rng.permutation(3)[: rng.integers(1, 4)].tolist():
        run = int(rng.choice([1, 2, 3] if array.shape[axis] % 3 == 0 else [1, 2, 4]))
        units = np.sort(rng.permutation(array.shape[axis] // run)[: rng.integers(1, 4)])
        kept[axis] = (units[:, None] * run + np.arange(run)).ravel()
        wanted = wanted.take(kept[axis], axis)
    assert np.array_equal(take(array, kept), wanted)


def test_taking_nothing_leaves_an_empty_axis():
    assert take(np.ones((4, 3)), {1: np.zeros(0, np.int64)}).shape == (4, 0)


def test_bytes_of_packed_numbers_are_those_that_onnx_stores():
    packed = ir.tensor(np.array([1, 2, 3, 4], np.int8), dtype=ir.DataType.INT8)
    assert bytes(bytes_of(packed)) == b"\x01\x02\x03\x04"
    fours = ir.tensor([1, 2, 3, 4], dtype=ir.DataType.INT4)
    assert bytes(bytes_of(fours)) == fours.tobytes() == b"\x21\x43"


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT])
def test_nan_is_found_in_every_float_type_and_infinity_is_none(dtype):
    from secateur.export.onnx_file import _count_nan

    array = np.array([1, np.inf, -np.inf, np.nan, -np.nan, 0], np.float32).astype(dtype.numpy())
    assert _count_nan(array, dtype) == 2


def test_the_name_of_a_weights_file_follows_what_it_holds(chain, tmp_path):
    model = from_onnx(chain)
    first = save(model, tmp_path / "a" / "m.onnx")[1].name
    assert save(model, tmp_path / "b" / "m.onnx")[1].name == first
    weight = model.graph.initializers["w3"]
    weight.const_value = ir.tensor(np.zeros((WIDTH, WIDTH), np.float32), name="w3")
    assert save(model, tmp_path / "b" / "m.onnx")[1].name != first
