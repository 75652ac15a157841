"""The script in a bundle that hands its goldens' inputs to Polygraphy, or to anything else."""

from __future__ import annotations

LOADER_NAME = "data_loader.py"

LOADER = '''\
"""The bundle's golden inputs, for Polygraphy.

    polygraphy run model.onnx --onnxrt --data-loader-script data_loader.py
    polygraphy run model.onnx --onnxrt --trt --data-loader-script data_loader.py

Needs NumPy only. The score biases of the forced twin are not among them.
"""

from pathlib import Path

import numpy as np


def load_data():
    """Yield one dict of input name to array for every golden batch."""
    with np.load(Path(__file__).with_name("goldens.npz"), allow_pickle=False) as arrays:
        cases = {}
        for key in arrays.files:
            number, kind, name = key.split("/", 2)
            if kind == "input":
                cases.setdefault(int(number), {})[name] = arrays[key]
    for number in sorted(cases):
        yield cases[number]
'''

__all__ = ["LOADER", "LOADER_NAME"]
