"""A whole MADTP model as one graph: both token axes are pruned in it, in three forms."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tests.madtp import graphs, small

from secateur.errors import BadInputError
from secateur.export.madtp_models import nlvr_graph, vision_graph
from secateur.graph_passes.names import parameter_names
from secateur.models.madtp.encoder import Pruning
from secateur.models.madtp.tasks import Compression
from secateur.models.madtp.towers import blip_image
from secateur.runtime.staged import Boundary, Crossing, Staged
from secateur.workflow.madtp_stages import split

_exported = graphs.nlvr


@torch.no_grad()
def _want(net, inputs, compression):
    return net(**inputs, compression=compression)["logits"].numpy()


@pytest.mark.sweep
@pytest.mark.parametrize("temperature", [0.5, 3.0, 20.0])
def test_one_graph_serves_every_temperature(temperature):
    net, _, session = _exported("decoupled")
    inputs = small.nlvr_inputs()
    (made,) = session.run(None, graphs.feeds(inputs, temperature=temperature))
    graphs.close(made, _want(net, inputs, Compression.at(temperature)))


@pytest.mark.sweep
def test_a_sample_of_the_graph_is_what_it_is_alone():
    session = _exported("decoupled")[2]
    feeds = graphs.feeds(small.nlvr_inputs(), temperature=3.0)
    (together,) = session.run(None, feeds)
    for b in range(3):
        alone = {n: (v[b : b + 1] if v.ndim else v) for n, v in feeds.items()}
        (made,) = session.run(None, alone)
        graphs.close(made[0], together[b])


@pytest.mark.sweep
def test_cross_attention_follows_the_cuts_under_padding_on_both_sides():
    """Text is padded in its own axis; image tokens are padded to the longer of two images."""
    net, _, session = _exported("decoupled")
    inputs = {name: value[2:] for name, value in small.nlvr_inputs().items()}
    length = int(inputs["attention_mask"].sum())
    texts = ("input_ids", "attention_mask")
    short = inputs | {name: inputs[name][:, :length] for name in texts}
    assert length < inputs["input_ids"].shape[1]
    want = _want(net, short, Compression.at(3.0))
    graphs.close(session.run(None, graphs.feeds(inputs, temperature=3.0))[0], want)
    swapped = inputs | {"pixel_values": inputs["pixel_values"].flip(1)}
    other = short | {"pixel_values": swapped["pixel_values"]}
    graphs.close(
        session.run(None, graphs.feeds(swapped, temperature=3.0))[0],
        _want(net, other, Compression.at(3.0)),
    )


@pytest.mark.sweep
def test_parameters_keep_their_names():
    net, model, _ = _exported("decoupled")
    names = set(parameter_names(model).values())
    assert {name for name, _ in net.named_parameters()} - names == set()


@pytest.mark.sweep
def test_the_faithful_form_is_the_published_coupling():
    net, _, session = _exported("faithful")
    inputs = small.nlvr_inputs()
    for temperature in (0.5, 3.0):
        (made,) = session.run(None, graphs.feeds(inputs, temperature=temperature))
        graphs.close(made, _want(net, inputs, Compression.at(temperature, coupled=True)))


@pytest.mark.sweep
def test_the_dense_form_is_the_dense_model():
    net, model, session = _exported("dense")
    inputs = small.nlvr_inputs()
    assert "temperature" not in {value.name for value in model.graph.inputs}
    feeds = {name: value.numpy() for name, value in inputs.items()}
    graphs.close(session.run(None, feeds)[0], _want(net, inputs, Compression()))


@torch.no_grad()
@pytest.mark.sweep
@pytest.mark.parametrize("form", ["schedule", "decoupled"])
def test_a_vision_tower_is_a_graph_by_itself(form):
    net, pixels = small.nlvr(), small.inputs()["pixel_values"]
    model = vision_graph(net.vision, net.concepts, form)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    counts = torch.tensor([8, 4])
    knob, pruning = {
        "schedule": ({"image_counts": counts.numpy()}, Pruning(counts=counts)),
        "decoupled": ({"temperature": np.array(3.0, np.float32)}, Pruning(temperature=3.0)),
    }[form]
    made = session.run(["hidden"], {"pixel_values": pixels.numpy()} | knob)[0]
    want = blip_image(net.vision, net.concepts.weight, pixels, pruning).hidden.numpy()
    assert made.shape[1] < 17
    graphs.close(made, want)


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("images", "text"), [([8, 4], [5, 3]), ([16, 2], [12, 1]), ([1, 1], [4, 4])]
)
def test_counts_of_a_schedule_are_inputs(images, text):
    net, _, session = _exported("schedule")
    inputs = small.nlvr_inputs()
    counts = [torch.tensor(values) for values in (images, text)]
    feeds = {n: v.numpy() for n, v in inputs.items()}
    feeds |= {"image_counts": counts[0].numpy(), "text_counts": counts[1].numpy()}
    want = _want(net, inputs, Compression(*(Pruning(counts=c) for c in counts)))
    graphs.close(session.run(None, feeds)[0], want)


@pytest.mark.sweep
@pytest.mark.parametrize(("batch", "tokens"), [(1, 0), (2, 0), (5, 0), (2, 40)])
def test_samples_that_are_regrouped_between_stages_come_out_as_alone(batch, tokens):
    _, model, session = _exported("decoupled")
    inputs = small.nlvr_inputs()
    queue = {
        n: torch.cat([v, v.flip(0) * (0.5 if v.is_floating_point() else 1)])
        for n, v in inputs.items()
    }
    feeds = graphs.feeds(queue, temperature=1.0)
    alone = [
        session.run(None, {n: (v[b : b + 1] if v.ndim else v) for n, v in feeds.items()})[0]
        for b in range(6)
    ]
    sites = ["vision.encoder.layers.0", "vision.encoder.layers.1", "text.encoder.layer.0"]
    made = graphs.staged(model, sites).run(feeds, batch, shared=("temperature",), tokens=tokens)
    assert list(made) == ["logits"]
    graphs.close(made["logits"], np.concatenate(alone))


@pytest.mark.sweep
def test_a_boundary_that_is_no_cut_is_refused():
    with pytest.raises(BadInputError, match="no such cut"):
        split(_exported("decoupled")[1], ["vision.encoder.layers.7"])


@pytest.mark.parametrize(
    ("tokens", "lengths"), [(0, [[2, 2], [3, 5], [9]]), (12, [[2, 2, 3], [5, 9]])]
)
def test_groups_of_similar_samples_grow_as_long_as_their_tokens_have_room(tokens, lengths):
    """The tokens of a group are those of its longest, position 0 included, times its size."""
    seen, kept = [], np.array([[9], [2], [5], [2], [3]])
    crossing = (Crossing("kept", 1), Crossing("available", 1))

    def second(given):
        seen.append(given["kept"].tolist())
        return {"out": given["kept"]}

    first = {"kept": kept[:, 0], "available": kept[:, 0]}
    staged = Staged(
        [lambda given: {n: a[given["row"]] for n, a in first.items()}, second],
        [Boundary("kept", "available", "tokens", crossing)],
    )
    made = staged.run({"row": np.arange(5)}, 2, tokens=tokens)
    assert made["out"].tolist() == kept[:, 0].tolist()
    assert seen == lengths


def test_a_stage_that_reads_only_images_takes_the_images_of_a_sample_one_by_one():
    """Two images per sample: short ones go together whatever sample they are of."""
    seen, kept = [], np.array([[2, 9], [9, 2], [2, 2]])
    name = np.array([["a0", "a1"], ["b0", "b1"], ["c0", "c1"]])

    def images(rows):  # as a graph has them: the first images of a batch, then the second ones
        counts = kept[rows].T.ravel()
        return {"kept": counts, "available": counts, "image": name[rows].T.ravel()}

    def looking(given):
        assert set(given) == {"kept", "available", "image"}
        seen.append(given["image"].tolist())
        return {"later": given["kept"], "seen": given["image"]}

    def told(given):
        pairs = zip(given["word"], *given["seen"].reshape(2, -1), strict=True)
        return {"out": np.array(["".join(row) for row in pairs])}

    words = Crossing("word", 1, read=False)
    first = tuple(Crossing(value, 2) for value in ("kept", "available", "image"))
    last = (
        Crossing("later", 2),
        Crossing("available", 2),
        Crossing("seen", 2),
        Crossing("word", 1),
    )
    staged = Staged(
        [lambda given: {**images(given["row"]), "word": given["text"]}, looking, told],
        [
            Boundary("kept", "available", "tokens", (*first, words)),
            Boundary("later", "available", "tokens", last),
        ],
    )
    made = staged.run({"row": np.arange(3), "text": np.array(["A", "B", "C"])}, 2)
    assert seen == [["a0", "b1", "c0", "c1"], ["a1", "b0"]]
    assert made["out"].tolist() == ["Aa0a1", "Bb0b1", "Cc0c1"]


def test_batches_below_one_are_refused():
    with pytest.raises(BadInputError, match="cut into batches"):
        Staged([lambda given: given], []).run({"x": np.zeros((2, 1))}, 0)


def test_an_unknown_form_is_refused():
    with pytest.raises(BadInputError, match="faithful"):
        nlvr_graph(small.nlvr(), "fast")
