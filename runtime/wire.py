"""Reads protocol-buffer messages: numbers and slices, nothing copied.

*Source: the Protocol Buffers encoding guide, "Message Structure".*
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

Message: TypeAlias = memoryview

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """Bytes that are no message; ``number`` and ``wire_type`` of the field that broke off."""

    def __init__(self, message: str, number: int, wire_type: int) -> None:
        self.number = number
        self.wire_type = wire_type
        super().__init__(message)


def fields(message: Message) -> Iterator[tuple[int, int, int | Message]]:
    """Yield (field number, wire type, value): an int for a varint, else the field's bytes."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = _varint(message, at, number)
            yield number, wire_type, value
            continue
        size, at = _size(message, at, number, wire_type)
        if at + size > end:
            raise WireError(
                f"field {number} needs {size} bytes, {end - at} are left", number, wire_type
            )
        yield number, wire_type, message[at : at + size]
        at += size


def integer(message: Message, number: int) -> int:
    """The last varint with this field number, or 0."""
    found = 0
    for at, _, value in fields(message):
        if at == number and isinstance(value, int):
            found = value
    return found


def strings(message: Message, number: int) -> tuple[str, ...]:
    """Every string with this field number."""
    return tuple(
        str(value, "utf-8")
        for at, _, value in fields(message)
        if at == number and isinstance(value, memoryview)
    )


def text(message: Message, number: int) -> str:
    """The last string with this field number, or ""."""
    found = strings(message, number)
    return found[-1] if found else ""


def _size(message: Message, at: int, number: int, wire_type: int) -> tuple[int, int]:
    """Bytes of the field's value and where they begin."""
    if wire_type == _BYTES:
        return _varint(message, at, number, wire_type)
    if wire_type in {_FIXED32, _FIXED64}:
        return (8 if wire_type == _FIXED64 else 4), at
    raise WireError(f"field {number} has no known wire type", number, wire_type)


def _varint(message: Message, at: int, number: int = 0, wire_type: int = 0) -> tuple[int, int]:
    value, shift = 0, 0
    while at < len(message) and shift < 70:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise WireError(f"a number in field {number} does not end", number, wire_type)


__all__ = ["Message", "WireError", "fields", "integer", "strings", "text"]
