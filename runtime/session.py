"""Opening a bundle to run it: checks first, then the backend, then plain calls."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from secateur.runtime.backend import BACKENDS, Array, Arrays, Backend
from secateur.runtime.backends.onnxruntime import PROVIDERS
from secateur.runtime.bundle import Bundle, open_bundle
from secateur.runtime.sites import budget_inputs
from secateur.runtime.targets import parse_target
from secateur.runtime.traffic import record_request

DEFAULT_TARGET = "onnxruntime"


class BundleRun(Protocol):
    """Runs an opened bundle."""

    def __call__(self, inputs: Arrays, keep: Mapping[str, float] = ...) -> dict[str, Array]:
        """Outputs by name. ``keep`` maps sites to shares (floats) or counts (ints)."""
        ...


def backend_for(target: str, options: Mapping[str, Any]) -> Backend:
    """The backend of a target, with the options of its entry in the manifest."""
    parsed = parse_target(target)
    more = {}
    if parsed.backend == "onnxruntime" and parsed.capabilities:
        more["providers"] = PROVIDERS[parsed.capabilities[0]]
    return BACKENDS[parsed.backend](**{**options, **more})


@contextmanager
def open_session(
    bundle: Bundle | Path | str,
    target: str = DEFAULT_TARGET,
    *,
    deployed: bool = True,
    record: Path | None = None,
) -> Generator[BundleRun]:
    """Yield ``run(inputs, keep={"encoder.layer.2": 0.5})`` for a bundle on one target.

    With ``deployed`` false ONNX Runtime rewrites nothing, as the parity oracle needs; else it
    has the options that the manifest recorded. Budgets that neither ``inputs`` nor ``keep``
    gives are the sites' defaults. The shapes of every call are appended to the file ``record``,
    from which profiles can be made. Raises BadInputError and MissingDependencyError before the
    backend is touched; from ``run`` for inputs that do not fit.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    try:
        entry = opened.engine(target)
        backend = backend_for(target, entry.options if deployed else {})
        manifest = opened.manifest
        with backend.session(opened.file(entry.file)) as run:

            def run_bundle(
                inputs: Arrays, keep: Mapping[str, float] = MappingProxyType({})
            ) -> dict[str, Array]:
                budgets = budget_inputs(
                    inputs, keep, sites=manifest.sites, trained=manifest.trained_keep
                )
                arrays = {**inputs, **budgets}
                outputs = run(arrays)
                if record is not None:
                    record_request(record, arrays, (s.budget.input for s in manifest.sites))
                return outputs

            yield run_bundle
    finally:
        if opened is not bundle:
            opened.close()


__all__ = ["DEFAULT_TARGET", "BundleRun", "backend_for", "open_session"]
