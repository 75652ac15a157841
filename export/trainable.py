"""Export without the rewrites that take away what training needs."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def kept(parameters: Collection[str]) -> Iterator[None]:
    """Inside, no batch norm is folded into a convolution and no zero bias of these is dropped.

    torch.onnx.export offers all of onnxscript's rewrites or none (and without any, shapes stay
    computed subgraphs), so its default rules are exchanged meanwhile. Zero biases that torch
    makes up for a convolution without one are still dropped. Tried with onnxscript 0.7; the
    names are private there.
    """
    from onnxscript import rewriter
    from onnxscript.rewriter.rules.common import _fuse_batchnorm, _remove_optional_bias

    everything = rewriter._DEFAULT_REWRITE_RULES  # noqa: SLF001 - no public name
    lossy = {id(rule) for rule in (*_fuse_batchnorm.rules, *_remove_optional_bias.rules)}
    rest = tuple(rule for rule in everything if id(rule) not in lossy)
    if len(rest) != len(everything) - len(lossy):
        raise RuntimeError("onnxscript folds batch norms by rules that are not known here")
    rewriter._DEFAULT_REWRITE_RULES = (*rest, *_made_up_biases(parameters))  # noqa: SLF001
    try:
        yield
    finally:
        rewriter._DEFAULT_REWRITE_RULES = everything  # noqa: SLF001


def _made_up_biases(parameters: Collection[str]) -> list[Any]:
    """Return the rules that drop zero biases, for all but the given parameters."""
    from onnxscript.rewriter.rules.common import _remove_optional_bias as biases

    def of_no_parameter(rule: Any) -> Any:  # noqa: ANN401 - onnxscript has no types for rules
        class Careful(rule):  # type: ignore[misc]
            def check(self, context: object, b: Any, **values: object) -> Any:  # noqa: ANN401
                if b.name in parameters:
                    return biases.MatchResult().fail("the bias is a parameter")
                return super().check(context, b, **values)

        return Careful().rule()

    classes = (
        biases.RemoveOptionalBiasFromConv,
        biases.RemoveOptionalBiasFromConvTranspose,
        biases.RemoveOptionalBiasFromGemm,
    )
    return [of_no_parameter(rule) for rule in classes]


__all__ = ["kept"]
