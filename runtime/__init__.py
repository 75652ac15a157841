"""Build, open, run, compare and time engines; needs NumPy and a backend only."""

if __name__ != "secateur.runtime":  # in a checkout, a second copy of every module
    raise ImportError(f"import 'secateur.runtime', not {__name__!r}")

from secateur.runtime import backends as _backends  # noqa: F401  # enters them in BACKENDS
