"""An NLVR2-like task of real handwriting: is a sentence true of two images of digits?

Every image is a 4 x 4 grid whose cells are empty or hold one handwritten digit of 8 x 8 points.
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

GRID, CELL, BRIGHTEST = 4, 8, 16
WORDS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
LENGTH = 12
"""Tokens of a padded sentence."""

Counts = NDArray[np.int64]
"""(2, 10), how often each digit is in the left and in the right image."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of sentence: its text with a digit in it, and when it is true."""

    text: str
    is_true: Callable[[Counts, int], bool]


_KINDS = (
    _Kind("the left image shows more {} than the right", lambda n, d: bool(n[0, d] > n[1, d])),
    _Kind("the right image shows more {} than the left", lambda n, d: bool(n[1, d] > n[0, d])),
    _Kind("both images show {}", lambda n, d: bool(n[0, d] and n[1, d])),
    _Kind("only the left image shows {}", lambda n, d: bool(n[0, d] and not n[1, d])),
    _Kind("only the right image shows {}", lambda n, d: bool(n[1, d] and not n[0, d])),
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
    """(n, 2, 32, 32), 0 to 16."""
    input_ids: NDArray[np.int64]
    """(n, 12), positions in ``VOCABULARY``."""
    labels: NDArray[np.int64]
    """(n,), 1 where the sentence is true."""

    def inputs(self, which: slice | Tensor) -> dict[str, Tensor]:
        """What ``BlipNlvr`` takes: pixels (B, 2, 3, 32, 32) from -1 to 1, ids, mask."""
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
    glyphs = _glyphs(split)
    rng = np.random.default_rng([seed, split == "test"])
    made = [_example(rng, glyphs, i) for i in range(count)]
    order = rng.permutation(count)
    return Examples(
        np.stack([pixels for pixels, _, _ in made])[order],
        np.stack([ids for _, ids, _ in made])[order],
        np.array([label for _, _, label in made], dtype=np.int64)[order],
    )


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


def _example(
    rng: np.random.Generator, glyphs: tuple[NDArray[np.uint8], ...], number: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64], np.int64]:
    """Even numbers are true, odd ones false; kinds take turns."""
    kind, answer = _KINDS[number // 2 % len(_KINDS)], number % 2 == 0
    digit = int(rng.integers(10))
    while True:
        cells = np.stack([_cells(rng, digit) for _ in (0, 1)])
        counts = np.stack([(cells == d).sum(axis=1) for d in range(10)], axis=1)
        if kind.is_true(counts, digit) == answer:
            break
    pixels = np.stack([_painted(rng, glyphs, side) for side in cells])
    return pixels, _tokens(kind.text.format(WORDS[digit])), np.int64(answer)


def _cells(rng: np.random.Generator, digit: int) -> NDArray[np.int64]:
    """Sixteen cells, three to seven with digits; the digit asked for is one in three of them."""
    cells = np.full(GRID * GRID, -1)
    used = rng.permutation(GRID * GRID)[: rng.integers(3, 8)]
    drawn = rng.integers(10, size=len(used))
    asked = rng.random(len(used)) < rng.choice([0.0, 0.3])
    cells[used] = np.where(asked, digit, drawn)
    return cells


def _painted(
    rng: np.random.Generator, glyphs: tuple[NDArray[np.uint8], ...], cells: NDArray[np.int64]
) -> NDArray[np.uint8]:
    image = np.zeros((GRID * CELL, GRID * CELL), dtype=np.uint8)
    for place, digit in enumerate(cells):
        if digit >= 0:
            row, column = (CELL * part for part in divmod(place, GRID))
            shape = glyphs[digit][rng.integers(len(glyphs[digit]))]
            image[row : row + CELL, column : column + CELL] = shape
    return image


def _tokens(text: str) -> NDArray[np.int64]:
    words = ["[CLS]", *text.split(), "[SEP]"]
    ids = [VOCABULARY.index(word) for word in words]
    return cast("NDArray[np.int64]", np.array(ids + [0] * (LENGTH - len(ids)), dtype=np.int64))


__all__ = ["LENGTH", "VOCABULARY", "WORDS", "Examples", "make_examples", "sentence"]
