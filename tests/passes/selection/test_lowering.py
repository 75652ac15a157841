"""A marker becomes exactly the nodes that the pass makes at the same place."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from tests.passes.selection.models import Variant, write
from tests.passes.selection.support import selections, selector, site

from secateur.errors import BadInputError
from secateur.graph_passes.lowering import Options, has_markers, lower_markers
from secateur.graph_passes.selection.budget import Budget
from secateur.graph_passes.sites import Site
from secateur.graph_passes.token_selection import insert_selections

MASKED = Variant(pool="mask")


def _with_markers(layers: tuple[int, ...], name: str = "") -> onnx.ModelProto:
    model, names = write(MASKED)
    for layer in layers:
        hidden = names[f"hidden.{layer}"]
        for node in model.graph.node:
            for k, read in enumerate(node.input):
                if read == hidden:
                    node.input[k] = f"{hidden}/marked"
        marker = helper.make_node(
            "SelectTokens",
            [hidden],
            [f"{hidden}/marked"],
            f"marker_{layer}",
            domain="secateur",
            by="class_row",
            site=name or site(layer),
            permille=600,
            protected=1,
        )
        at = next(i for i, n in enumerate(model.graph.node) if hidden in n.output)
        model.graph.node.insert(at + 1, marker)
    model.opset_import.append(helper.make_opsetid("secateur", 1))
    return model


def _trace(by: str, at: Site, opset: int, options: Options) -> ir.Model:
    del at, opset, options
    return selector(by)


def _text(model: ir.Model) -> list[tuple[str, str, tuple[str | None, ...]]]:
    return [
        (n.op_type, str(n.name), tuple(None if v is None else v.name for v in n.inputs))
        for n in model.graph
    ]


def test_marker_and_pass_make_the_same_nodes() -> None:
    lowered = lower_markers(ir.from_proto(_with_markers((0, 1))), _trace, expose_kept=True)
    plain = ir.from_proto(write(MASKED)[0])
    passed = insert_selections(plain, selections((0, 1), budget=Budget("permille", 600)))
    assert _text(lowered) == _text(passed)
    assert lowered.metadata_props["secateur.sites"] == passed.metadata_props["secateur.sites"]
    onnx.checker.check_model(ir.to_proto(lowered), full_check=True)


def test_no_marker_is_left() -> None:
    model = ir.from_proto(_with_markers((0,)))
    assert has_markers(model)
    lowered = lower_markers(model, _trace)
    assert not has_markers(lowered)
    assert "secateur" not in lowered.opset_imports
    assert has_markers(model)


def test_model_without_markers_is_returned_as_it_is() -> None:
    plain = ir.from_proto(write(MASKED)[0])
    assert _text(lower_markers(plain, _trace)) == _text(plain)


def test_marker_at_an_unknown_site() -> None:
    with pytest.raises(BadInputError, match="unknown site 'decoder'"):
        lower_markers(ir.from_proto(_with_markers((0,), name="decoder")), _trace)


def test_marker_at_the_output_is_refused() -> None:
    model, names = write(Variant(pool="tokens", layers=1))
    marker = helper.make_node(
        "SelectTokens", [names["hidden.0"]], ["y"], "m", domain="secateur", by="k", site=site(0)
    )
    model.graph.node[-1].CopyFrom(marker)
    model.opset_import.append(helper.make_opsetid("secateur", 1))
    with pytest.raises(BadInputError, match="between two parts"):
        lower_markers(ir.from_proto(model), _trace)
