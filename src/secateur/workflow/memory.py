"""Peak memory of a model, measured in a fresh process that does nothing else.

``python -m secateur.workflow.memory MODEL INPUTS.npz LEVEL`` prints the peak in bytes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from secateur.errors import SecateurError
from secateur.runtime.backend import Arrays
from secateur.workflow.arrays import save_arrays

_RUNS = 3


def peak_bytes(model: Path, inputs: Arrays, *, level: str) -> int:
    """Largest resident size of a process that opens the model and runs it a few times.

    The process holds Python, NumPy and ONNX Runtime too, as any process that runs it does.

    Raises:
        SecateurError: the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="secateur-memory-") as folder:
        arrays = Path(folder) / "inputs.npz"
        save_arrays(arrays, inputs)
        command = [sys.executable, "-P", "-m", __name__, str(model), str(arrays), level]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SecateurError(
            f"measuring memory failed with status {done.returncode}",
            where=str(model),
            got=done.stderr[-500:].strip(),
        )
    return int(done.stdout.split()[-1])


def main(model: str, arrays: str, level: str) -> None:
    """Run the model in this process and print its peak."""
    from secateur.runtime.backends.onnxruntime import OnnxRuntime

    with np.load(arrays, allow_pickle=False) as file:
        inputs = {name: file[name] for name in file.files}
    with OnnxRuntime(optimisation=level).session(Path(model)) as run:
        for _ in range(_RUNS):
            run(inputs)
    sys.stdout.write(f"{_own_peak_bytes()}\n")


def _own_peak_bytes() -> int:
    """VmHWM where there is a /proc: what getrusage says there counts the parent's memory too."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(*sys.argv[1:])


__all__ = ["peak_bytes"]
