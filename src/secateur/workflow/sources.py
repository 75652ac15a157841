"""The model a command works on, from wherever it comes."""

from __future__ import annotations
