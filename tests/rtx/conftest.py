"""The runner is a script with sibling modules, some of them the zoo's; so import its tests."""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path.extend([str(_HERE), str(_HERE.parent / "zoo")])
