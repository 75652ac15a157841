"""How many pictures stand in one prompt: one, the frames of a video, or crops of one picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Layout:
    """Frames, or the whole picture and then its crops, row by row."""

    frames: int = 1
    rows: int = 0
    columns: int = 0

    @property
    def n_pictures(self) -> int:
        """Pictures that the tower sees of one prompt."""
        return self.frames if not self.rows else 1 + self.rows * self.columns

    def pictures(self, given: object, side: int) -> list[object]:
        """Return the pictures of one prompt; ``side`` is that of the tower's input in pixels.

        Raises:
            BadInputError: another number of frames, or something that is no picture.
        """
        if self.rows:
            return self._cropped(given, side)
        if self.n_pictures == 1:
            return [given]
        if not isinstance(given, Sequence) or len(given) != self.frames:
            raise BadInputError(
                "a prompt has another number of frames",
                got=str(len(given)) if isinstance(given, Sequence) else type(given).__name__,
                wanted=f"a list of {self.frames} pictures",
            )
        return list(given)

    def _cropped(self, given: object, side: int) -> list[object]:
        from PIL import Image

        whole = given
        if isinstance(given, np.ndarray) and given.dtype == np.uint8 and given.size:
            whole = Image.fromarray(given)
        if not isinstance(whole, Image.Image) or 0 in whole.size:
            raise BadInputError(
                "not a picture that can be cropped",
                got=type(given).__name__,
                wanted="(H, W, 3) uint8 array or PIL image with pixels",
            )
        sized = whole.convert("RGB").resize((self.columns * side, self.rows * side))
        corners = [(x * side, y * side) for y in range(self.rows) for x in range(self.columns)]
        return [whole, *(sized.crop((x, y, x + side, y + side)) for x, y in corners)]


ONE_PICTURE = Layout()


def layout_of(part: str, folder: Path) -> Layout:
    """Read ``frames=4`` or ``crops=2x2``; nothing is one picture.

    Raises:
        BadInputError: something else.
    """
    if not part:
        return ONE_PICTURE
    if found := re.fullmatch(r"frames=([1-9]\d*)", part):
        return Layout(frames=int(found[1]))
    if found := re.fullmatch(r"crops=([1-9]\d*)x([1-9]\d*)", part):
        return Layout(rows=int(found[1]), columns=int(found[2]))
    raise BadInputError(
        "this model has no such part",
        where=str(folder),
        got=part,
        wanted="nothing, frames=<number> or crops=<rows>x<columns>",
    )


__all__ = ["ONE_PICTURE", "Layout", "layout_of"]
