"""The digits task: repeatable, balanced, and with different handwriting in its two splits."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.errors import BadInputError
from secateur.models.madtp.digits import EMPTY, LENGTH, WORDS, make_examples, sentence


@pytest.fixture(scope="module")
def examples():
    return make_examples(200, "test", seed=3)


def test_a_seed_gives_the_same_examples(examples):
    again = make_examples(200, "test", seed=3)
    for name in ("pixels", "input_ids", "labels", "cells"):
        np.testing.assert_array_equal(getattr(again, name), getattr(examples, name))
    assert not np.array_equal(make_examples(200, "test", seed=4).pixels, examples.pixels)


def test_answers_are_balanced_within_every_kind_of_sentence(examples):
    by_kind = {}
    for ids, label in zip(examples.input_ids, examples.labels, strict=True):
        words = tuple(word for word in sentence(ids).split() if word not in WORDS)
        by_kind.setdefault(words, []).append(label)
    assert len(by_kind) == 5
    assert {np.mean(labels) for labels in by_kind.values()} == {0.5}


def test_sentences_differ_in_length(examples):
    lengths = (examples.input_ids != 0).sum(axis=1)
    assert lengths.min() < lengths.max() <= LENGTH


def _cells(pixels):
    """Every painted cell as bytes."""
    cells = pixels.reshape(-1, 6, 8, 6, 8).swapaxes(2, 3).reshape(-1, 64)
    return {cell.tobytes() for cell in cells if cell.any()}


def test_no_handwriting_is_in_both_splits(examples):
    assert not _cells(examples.pixels) & _cells(make_examples(200, "train", seed=3).pixels)


def _count(image, digit, shapes):
    return sum(cell.tobytes() in shapes[digit] for cell in _grid(image) if cell.any())


def _grid(image):
    return image.reshape(6, 8, 6, 8).swapaxes(1, 2).reshape(36, 64)


def test_the_answer_is_what_the_images_show(examples):
    from sklearn.datasets import load_digits

    found = load_digits()
    images = found.images.astype(np.uint8).reshape(-1, 64)
    shapes = [{image.tobytes() for image in images[found.target == d]} for d in range(10)]
    for pixels, ids, label in zip(
        examples.pixels, examples.input_ids, examples.labels, strict=True
    ):
        words = sentence(ids).split()
        digit = next(i for i, word in enumerate(WORDS) if word in words)
        left, right = (_count(image, digit, shapes) for image in pixels)
        truth = {
            "the left image": left > right,
            "the right image": right > left,
            "both images show": left > 0 and right > 0,
            "only the left": left > 0 and right == 0,
            "only the right": right > 0 and left == 0,
        }[" ".join(words[:3])]
        assert truth == bool(label), sentence(ids)


def test_cells_name_the_digits_that_are_painted(examples):
    painted = np.stack([[_grid(image).any(axis=1) for image in pair] for pair in examples.pixels])
    np.testing.assert_array_equal(painted, examples.cells != EMPTY)


def test_inputs_are_what_the_model_takes(examples):
    inputs = examples.inputs(slice(0, 3))
    assert inputs["pixel_values"].shape == (3, 2, 3, 48, 48)
    assert (inputs["pixel_values"].min(), inputs["pixel_values"].max()) == (-1, 1)
    assert inputs["attention_mask"].sum(dim=1).tolist() == [
        len(sentence(ids).split()) + 2 for ids in examples.input_ids[:3]
    ]


@pytest.mark.parametrize("count", [0, 3])
def test_a_count_that_cannot_be_balanced_is_refused(count):
    with pytest.raises(BadInputError, match="even"):
        make_examples(count, "train", seed=0)
