"""What builds and runs engines: one file each, entered in BACKENDS when it is imported here.

None of them imports its library before it is used.
"""

from secateur.runtime.backends import onnxruntime as _onnxruntime  # noqa: F401
from secateur.runtime.backends import tensorrt as _tensorrt  # noqa: F401
