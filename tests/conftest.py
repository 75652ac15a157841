"""What holds for every test."""

from __future__ import annotations

import os

# Engines must come from the builder, not from what an earlier run of the tests left in the
# user's cache; a test of the cache names a folder of its own.
os.environ["SECATEUR_CACHE"] = "off"
