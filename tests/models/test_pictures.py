"""Pictures as inputs: what is no picture is refused before anything is scaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secateur.errors import BadInputError
from secateur.models.families.images import pixels, preprocessing

SIDE = 8


@pytest.mark.parametrize(
    "empty",
    [np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0, 3), np.uint8), Image.new("RGB", (0, 4))],
    ids=["no rows", "no columns", "pillow"],
)
def test_an_empty_image_is_refused(empty: object, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="an image without pixels"):
        pixels(preprocessing(tmp_path, SIDE), [np.ones((4, 4, 3), np.uint8), empty])


def test_no_image_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no image"):
        pixels(preprocessing(tmp_path, SIDE), [])


def test_an_image_of_one_pixel_is_scaled_like_any_other(tmp_path: Path) -> None:
    made = pixels(preprocessing(tmp_path, SIDE), [np.full((1, 1, 3), 255, np.uint8)])
    assert made["pixel_values"].shape == (1, 3, SIDE, SIDE)
    assert (made["pixel_values"] == 1.0).all()


@pytest.mark.parametrize(
    ("image", "message"),
    [(np.zeros((4, 4, 3)), "has to be uint8"), ("a cat", "not an image")],
)
def test_what_is_no_image_is_refused(image: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=message):
        pixels(preprocessing(tmp_path, SIDE), [image])
