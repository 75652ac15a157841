"""Exported graphs of small models, each made once, and how to run them."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
from tests.madtp import small

from secateur.export.madtp_models import nlvr_graph
from secateur.runtime.staged import Staged
from secateur.workflow.madtp_stages import split

QUIET = 3
"""The two graphs that a removal is held to each other by have weights that nothing reads."""


@functools.cache
def nlvr(form):
    """The small classifier, its graph, and a session of it."""
    net = small.nlvr()
    model = nlvr_graph(net, form)
    return net, model, session_of(model)


def session_of(model):
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)


def staged(model, sites):
    """The stages of a decoupled graph, cut at ``sites``, on ONNX Runtime."""
    parts = split(model, sites)
    sessions = [ort.InferenceSession(part.SerializeToString()) for part in parts.models]

    def running(session):
        names = [value.name for value in session.get_outputs()]
        wanted = {value.name for value in session.get_inputs()}
        return lambda given: dict(
            zip(
                names,
                session.run(None, {n: a for n, a in given.items() if n in wanted}),
                strict=True,
            )
        )

    return Staged([running(session) for session in sessions], parts.boundaries)


def feeds(inputs, **knobs):
    """Arrays of tensors; a ``temperature`` or counts beside them."""
    arrays = {name: value.numpy() for name, value in inputs.items()}
    typed = {"temperature": np.float32}
    return arrays | {n: np.array(v, dtype=typed.get(n, np.int64)) for n, v in knobs.items()}


def rows(given, at, count=1):
    """Some samples of what a graph takes; the knobs stay."""
    knobs = {"temperature", "image_counts", "text_counts"}
    return {n: v if n in knobs else v[at : at + count] for n, v in given.items()}


def close(made, want, bound=1e-4):
    np.testing.assert_allclose(made, want, rtol=bound, atol=bound * np.abs(want).max())
