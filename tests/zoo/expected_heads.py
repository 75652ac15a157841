"""Attention heads counted on the PyTorch module, without a look at the graph.

The count shares nothing with the analysis: it reads what the modules say about
themselves and how often each of them runs. It is information, not a verdict: a
module may call its head count something that is not listed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# In this order: where keys and values have fewer heads than queries, those count.
_NAMES = (
    "num_key_value_heads",
    "num_kv_heads",
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "n_head",
)
_CALLED_ATTENTION = ("attn", "attention", "attend")


@dataclass(frozen=True)
class ExpectedHeads:
    """Runs of attention modules, the heads in all of them, and what the module gave."""

    sites: int
    heads: int
    output: Any


def count_heads(net: Any, inputs: dict[str, Any]) -> ExpectedHeads:
    """Run ``net`` once and add the heads of every attention module that ran."""
    import torch

    found: list[int] = []
    handles = [
        module.register_forward_hook(
            lambda *_args, heads=heads, **_kwargs: found.append(heads), with_kwargs=True
        )
        for module, heads in _attention_modules(net)
    ]
    with torch.no_grad():
        output = net(**inputs)
    for handle in handles:
        handle.remove()
    return ExpectedHeads(sites=len(found), heads=sum(found), output=output)


def _attention_modules(net: Any) -> list[tuple[Any, int]]:
    """Innermost modules that are called attention and know a number of heads."""
    named = {name: (module, _heads(module)) for name, module in net.named_modules()}
    chosen = {
        name: (module, heads)
        for name, (module, heads) in named.items()
        if heads and _is_attention(name, module)
    }
    return [
        entry
        for name, entry in chosen.items()
        if not any(other.startswith(name + ".") for other in chosen)
    ]


def _is_attention(name: str, module: Any) -> bool:
    called = f"{name.rpartition('.')[2]} {type(module).__name__}".lower()
    return any(word in called for word in _CALLED_ATTENTION)


def _heads(module: Any) -> int:
    sources = (module, getattr(module, "config", None))
    for source in sources:
        for name in _NAMES:
            value = getattr(source, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
    return 0
