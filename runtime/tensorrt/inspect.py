"""Asks TensorRT's engine inspector; needs the device that the engine is for.

Not yet run on hardware; the names used are held to the published bindings by a test.
"""

from __future__ import annotations

from secateur.runtime import cuda_driver
from secateur.runtime.tensorrt.api import Message, load, make_logger
from secateur.runtime.tensorrt.engine import cannot_open, make_context


def engine_information(backend: str, content: bytes) -> str:
    """The inspector's JSON of an engine, for its first profile.

    Raises MissingDependencyError for no library or no device, BadInputError for an engine that
    cannot be opened here.
    """
    trt = load(backend)
    messages: list[Message] = []
    logger = make_logger(trt, messages)
    with cuda_driver.device_context():
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(content)
        if engine is None:
            raise cannot_open(trt, messages)
        context, _ = make_context(trt, engine, messages)
        inspector = engine.create_engine_inspector()
        inspector.execution_context = context
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


__all__ = ["engine_information"]
