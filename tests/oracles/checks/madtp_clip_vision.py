"""MADTP's selection and merge in one layer of the CLIP vision branch."""

from tests.oracles.madtp_layer import check

__all__ = ["check"]
