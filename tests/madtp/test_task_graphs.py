"""VQA, captions and retrieval as one graph each, in every form, beside their PyTorch models."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from tests.madtp import graphs, small

from secateur.errors import BadInputError
from secateur.export.madtp_models import caption_graph, clip_graph, retrieval_graph, vqa_graph
from secateur.models.madtp.concepts import Concepts
from secateur.models.madtp.encoder import Pruning
from secateur.models.madtp.tasks import (
    BlipCaption,
    BlipRetrieval,
    BlipVqa,
    ClipRetrieval,
    Compression,
)

COUNTS = {"image_counts": [8, 4], "text_counts": [6, 3]}


def _blip(wrapper, kind):
    import transformers

    torch.manual_seed(0)
    dense = getattr(transformers, kind)(small.blip_config())
    return small.perturbed(wrapper(dense, Concepts(8, 32)))


def _clip():
    from transformers import CLIPModel

    torch.manual_seed(0)
    return small.perturbed(ClipRetrieval(CLIPModel(small.clip_config()), Concepts(8, 24)))


TASKS = {
    "retrieval": (lambda: _blip(BlipRetrieval, "BlipForImageTextRetrieval"), retrieval_graph),
    "vqa": (lambda: _blip(BlipVqa, "BlipForQuestionAnswering"), vqa_graph),
    "caption": (lambda: _blip(BlipCaption, "BlipForConditionalGeneration"), caption_graph),
    "clip": (_clip, clip_graph),
}


TRACES = ({}, {})
"""Of BLIP's parts and of CLIP's: all tasks of a family have the same sizes."""


@functools.cache
def _made(task, form):
    maker, export = TASKS[task]
    net = maker()
    model = export(net, form, traces=TRACES[task == "clip"])
    return net, model, graphs.session_of(model)


def _inputs(task, batch=3):
    made = small.inputs(batch, end=49 if task == "clip" else None)
    if task == "vqa":
        made["decoder_input_ids"] = made["input_ids"][:, :4].clamp(min=3)
    if task == "caption":
        del made["attention_mask"]
        made["input_ids"] = made["input_ids"].clamp(min=3)
    return made


def _run(made, inputs, **knobs):
    """Outputs of a graph by name; CLIP's takes no mask, and captions have no text to prune."""
    session = made[2]
    wanted = {value.name for value in session.get_inputs()}
    given = {n: v for n, v in graphs.feeds(inputs, **knobs).items() if n in wanted}
    assert set(given) == wanted
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, given), strict=True))


@torch.no_grad()
def _want(made, inputs, compression):
    return {n: v.numpy() for n, v in made[0](**inputs, compression=compression).items()}


def _close(made, want):
    assert set(made) == set(want)
    for name, value in want.items():
        graphs.close(made[name], value)


every_task = pytest.mark.parametrize("task", list(TASKS))


@pytest.mark.sweep
@every_task
@pytest.mark.parametrize("temperature", [0.5, 3.0, 20.0])
def test_a_graph_that_decides_itself_is_its_model(task, temperature):
    made, inputs = _made(task, "decoupled"), _inputs(task)
    free = _run(made, inputs, temperature=temperature)
    _close(free, _want(made, inputs, Compression.at(temperature)))


@pytest.mark.sweep
@every_task
def test_a_graph_that_is_told_its_counts_is_its_model(task):
    made, inputs = _made(task, "schedule"), _inputs(task)
    forced = [Pruning(counts=torch.tensor(counts)) for counts in COUNTS.values()]
    _close(_run(made, inputs, **COUNTS), _want(made, inputs, Compression(*forced)))


@pytest.mark.sweep
@every_task
def test_a_graph_with_one_count_for_the_batch_is_the_published_coupling(task):
    made, inputs = _made(task, "faithful"), _inputs(task)
    want = _want(made, inputs, Compression.at(3.0, coupled=True))
    _close(_run(made, inputs, temperature=3.0), want)


@pytest.mark.sweep
@every_task
def test_a_dense_graph_is_the_dense_model(task):
    made, inputs = _made(task, "dense"), _inputs(task)
    _close(_run(made, inputs), _want(made, inputs, Compression()))


@pytest.mark.sweep
@every_task
def test_a_sample_of_any_batch_is_what_it_is_alone_without_its_padding(task):
    """Texts are padded to the longest, image tokens to the sample that keeps the most."""
    made, inputs = _made(task, "decoupled"), _inputs(task)
    together = _run(made, inputs, temperature=3.0)
    for b in range(3):
        alone = {name: value[b : b + 1] for name, value in inputs.items()}
        if "attention_mask" in alone and task != "clip":  # CLIP's padding counts as tokens
            length = int(alone["attention_mask"].sum())
            texts = ("input_ids", "attention_mask")
            alone |= {name: alone[name][:, :length] for name in texts}
        made_alone = _run(made, alone, temperature=3.0)
        for name, value in together.items():
            graphs.close(made_alone[name][0], value[b])


@pytest.mark.sweep
@every_task
def test_pruning_changes_what_the_graph_says(task):
    made, inputs = _made(task, "decoupled"), _inputs(task)
    little, much = (_run(made, inputs, temperature=t) for t in (1e-3, 20.0))
    assert any(np.abs(little[name] - much[name]).max() > 1e-3 for name in little)


@pytest.mark.parametrize("export", [export for _, export in TASKS.values()], ids=list(TASKS))
def test_an_unknown_form_of_a_task_is_refused(export):
    with pytest.raises(BadInputError, match="schedule"):
        export(None, "fast")
