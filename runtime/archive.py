"""Zip files: packing a folder, and unpacking one that somebody else may have made."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path

from secateur.errors import BadInputError
from secateur.runtime.files import inside

_EPOCH = (1980, 1, 1, 0, 0, 0)


def pack(folder: Path, archive_path: Path) -> None:
    """Write a folder's files to a zip, stored (engines do not compress), sorted, undated."""
    with zipfile.ZipFile(archive_path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder).as_posix()
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.external_attr = 0o644 << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, 1 << 20)


def extract(archive_path: Path, folder: Path) -> None:
    """Unpack a zip below ``folder``.

    Raises BadInputError, before anything is written, for a file that is no zip, a member
    whose path leaves the folder, a link, or a name that comes twice; afterwards for a member
    that does not match its checksum.
    """
    try:
        with zipfile.ZipFile(archive_path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            _check_members(archive_path, folder, members)
            for member in members:
                target = folder / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BadInputError(
            "the bundle is neither a folder nor a readable zip",
            where=str(archive_path),
            got=str(error),
            next_step="copy the bundle again; it may have been cut short",
        ) from error


def _check_members(archive_path: Path, folder: Path, members: list[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for member in members:
        where = f"{archive_path}, member {member.filename!r}"
        inside(folder, member.filename, where=where)
        if stat.S_ISLNK(member.external_attr >> 16):
            raise BadInputError("a zip member is a link", where=where, wanted="plain files")
        if member.filename in seen:
            raise BadInputError("a zip member comes twice", where=where)
        seen.add(member.filename)


__all__ = ["extract", "pack"]
