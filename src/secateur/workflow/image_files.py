"""Pictures in a folder, one at a time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import BadInputError, MissingDependencyError

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})


def read_images(folder: Path, limit: int) -> Iterator[tuple[str, Image]]:
    """Yield name and picture of the image files of a folder and those below it, by name.

    Args:
        folder: holds files that end in one of ``ENDINGS``; others are passed over.
        limit: yield at most this many.

    Raises:
        BadInputError: no folder, no picture in it, or one that cannot be read.
        MissingDependencyError: Pillow is not installed.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingDependencyError(
            "Pillow is needed to read pictures", next_step="pip install pillow"
        ) from error
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if not files:
        raise BadInputError(
            "the folder holds no pictures",
            where=str(folder),
            wanted="files that end in " + ", ".join(sorted(ENDINGS)),
        )
    for path in islice(files, limit):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", PIL.Image.DecompressionBombWarning)
                with PIL.Image.open(path) as picture:
                    yield path.relative_to(folder).as_posix(), picture.convert("RGB")
        except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise BadInputError(
                "a picture cannot be read", where=str(path), got=str(error).splitlines()[0]
            ) from error
        except PIL.Image.DecompressionBombWarning as error:
            raise BadInputError(
                "a picture is too large", where=str(path), got=str(error).splitlines()[0]
            ) from error


__all__ = ["ENDINGS", "read_images"]
