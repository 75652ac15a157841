"""An NLVR2-like task of real handwriting: is a sentence true of two images of digits?

Every image is a 6 x 6 grid whose cells are empty or hold one handwritten digit of 8 x 8 points.
Training and test images use different handwritten digits. Half of the sentences are true,
within every kind of sentence.

*Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998 (with
scikit-learn).*
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.errors import BadInputError

GRID, CELL, BRIGHTEST = 6, 8, 16
WORDS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
LENGTH = 12
"""Tokens of a padded sentence."""

EMPTY = 10
"""The class of a cell without a digit."""

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of sentence: its text with a digit in it, and when it is true."""

    text: str
    is_true: Callable[[IntArray, IntArray], BoolArray]
    """Of how often (n,) the digit is in the left and in the right images."""


_KINDS = (
    _Kind("the left image shows more {} than the right", lambda left, right: left > right),
    _Kind("the right image shows more {} than the left", lambda left, right: right > left),
    _Kind("both images show {}", lambda left, right: (left > 0) & (right > 0)),
    _Kind("only the left image shows {}", lambda left, right: (left > 0) & (right == 0)),
    _Kind("only the right image shows {}", lambda left, right: (right > 0) & (left == 0)),
)
VOCABULARY = (
    "[PAD]",
    "[CLS]",
    "[SEP]",
    *sorted({w for kind in _KINDS for w in kind.text.split() if w != "{}"}),
    *WORDS,
)


@dataclass(frozen=True, slots=True)
class Examples:
    """Pairs of images, sentences, answers."""

    pixels: NDArray[np.uint8]
    """(n, 2, 48, 48), 0 to 16."""
    input_ids: IntArray
    """(n, 12), positions in ``VOCABULARY``."""
    labels: IntArray
    """(n,), 1 where the sentence is true."""
    cells: IntArray
    """(n, 2, 36), which digit every cell holds, row by row; ``EMPTY`` for none."""

    def inputs(self, which: slice | Tensor) -> dict[str, Tensor]:
        """What ``BlipNlvr`` takes: pixels (B, 2, 3, 48, 48) from -1 to 1, ids, mask."""
        pixels = torch.from_numpy(self.pixels)[which].float() / (BRIGHTEST / 2) - 1
        ids = torch.from_numpy(self.input_ids)[which]
        return {
            "pixel_values": pixels[:, :, None].expand(-1, -1, 3, -1, -1).contiguous(),
            "input_ids": ids,
            "attention_mask": (ids != 0).long(),
        }


def sentence(input_ids: NDArray[np.int64]) -> str:
    """The words of one row of ``Examples.input_ids``."""
    return " ".join(VOCABULARY[i] for i in input_ids if i > 2)


def make_examples(count: int, split: Literal["train", "test"], *, seed: int) -> Examples:
    """Draw examples; the same seed gives the same ones.

    Args:
        count: even, so that answers can be balanced.
        split: which handwritten digits to use; four of five are for training.
        seed: of everything that is drawn.

    Raises:
        BadInputError: an odd count, or none.
        MissingDependencyError: scikit-learn, which has the digits, is not installed.
    """
    if count < 2 or count % 2:
        raise BadInputError("answers cannot be balanced", got=str(count), wanted="an even count")
    rng = np.random.default_rng([seed, split == "test"])
    number = np.arange(count)
    asked = rng.integers(10, size=count)
    kind, answer = number // 2 % len(_KINDS), number % 2 == 0
    cells = _drawn(rng, asked)
    while (wrong := np.flatnonzero(_truth(cells, asked, kind) != answer)).size:
        cells[wrong] = _drawn(rng, asked[wrong])
    ids = np.stack(
        [_tokens(_KINDS[k].text.format(WORDS[d])) for k, d in zip(kind, asked, strict=True)]
    )
    order = rng.permutation(count)
    pixels = _painted(rng, _glyphs(split), cells[order])
    return Examples(pixels, ids[order], answer[order].astype(np.int64), cells[order])


def _glyphs(split: Literal["train", "test"]) -> tuple[NDArray[np.uint8], ...]:
    """Handwritten digits by their value, each (m, 8, 8)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        from secateur.errors import MissingDependencyError

        raise MissingDependencyError(
            "scikit-learn is not installed", next_step="pip install 'secateur[demo]'"
        ) from error
    found = load_digits()
    is_test = np.arange(len(found.target)) % 5 == 0
    chosen = is_test if split == "test" else ~is_test
    images, values = found.images[chosen].astype(np.uint8), found.target[chosen]
    return tuple(images[values == digit] for digit in range(10))


def _drawn(rng: np.random.Generator, asked: IntArray) -> IntArray:
    """(n, 2, 36) cells with digits or none; in half of the images one digit in three is asked.

    Images hold as different amounts as photographs do: one digit to a full grid, every doubling
    as often as the next.
    """
    shape = (len(asked), 2, GRID * GRID)
    filled = np.exp(rng.uniform(0, np.log(shape[2] + 1), size=(*shape[:2], 1))).astype(np.int64)
    used = rng.random(shape).argsort(axis=2) < filled
    share = rng.choice([0.0, 0.3], size=(*shape[:2], 1))
    digits = np.where(rng.random(shape) < share, asked[:, None, None], rng.integers(10, size=shape))
    return np.where(used, digits, EMPTY)


def _truth(cells: IntArray, asked: IntArray, kind: IntArray) -> BoolArray:
    """(n,), whether each sentence is true of its images."""
    left, right = (cells == asked[:, None, None]).sum(axis=2).T
    return np.choose(kind, [k.is_true(left, right) for k in _KINDS])


def _painted(
    rng: np.random.Generator, glyphs: tuple[NDArray[np.uint8], ...], cells: IntArray
) -> NDArray[np.uint8]:
    """(n, 2, 48, 48), every cell with some handwritten form of its digit."""
    filled = np.zeros((*cells.shape, CELL, CELL), dtype=np.uint8)
    for digit, forms in enumerate(glyphs):
        where = cells == digit
        filled[where] = forms[rng.integers(len(forms), size=int(where.sum()))]
    grid = filled.reshape(*cells.shape[:2], GRID, GRID, CELL, CELL).swapaxes(3, 4)
    return grid.reshape(*cells.shape[:2], GRID * CELL, GRID * CELL)


def _tokens(text: str) -> NDArray[np.int64]:
    words = ["[CLS]", *text.split(), "[SEP]"]
    ids = [VOCABULARY.index(word) for word in words]
    return cast("NDArray[np.int64]", np.array(ids + [0] * (LENGTH - len(ids)), dtype=np.int64))


__all__ = ["LENGTH", "VOCABULARY", "WORDS", "Examples", "make_examples", "sentence"]
