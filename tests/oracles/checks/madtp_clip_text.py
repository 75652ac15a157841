"""MADTP's selection and merge in one layer of the CLIP text branch."""

from tests.oracles.madtp_layer import check

__all__ = ["check"]
