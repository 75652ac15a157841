"""Every signal that a token selector may read, with its axes."""

from __future__ import annotations

SIGNALS: dict[str, tuple[str, ...]] = {
    "class_row": ("batch", "tokens"),
    "class_rows": ("batch", "layers", "tokens"),
    "last_row": ("batch", "tokens"),
    "column_mean": ("batch", "tokens"),
    "column_means": ("batch", "layers", "tokens"),
    "full": ("batch", "query_heads", "tokens", "tokens"),
    "class_value": ("batch", "heads", "head_dim"),
    "keys": ("batch", "heads", "tokens", "head_dim"),
    "values": ("batch", "heads", "tokens", "head_dim"),
    "hidden": ("batch", "tokens", "width"),
    "hidden_before": ("batch", "tokens", "width"),
    "text_embedding": ("batch", "text_width"),
    "patch_entropy": ("batch", "tokens"),
    "accumulated": ("batch", "tokens"),
    "valid": ("batch", "tokens"),
}
"""The axes of a signal. ``tokens`` are those that can be selected at the cut: where the class
token was taken away between the site's attention and the cut, every signal lacks it too.

``class_row``: attention of the first token, mean over heads; rows sum to 1 over all keys.
``class_rows``: the same of several layers; the option ``layers`` says which ("16:", "8,-1"),
    counted as Python counts, over the attention blocks up to the site.
``last_row``: attention of the last valid token, mean over heads.
``column_mean``: attention a token receives, mean over heads and valid queries.
``column_means``: the same of several layers, chosen by the option ``layers``.
``full``: the attention map of the site, softmax over keys (axis 3).
``class_value``: the value vector of the first token.
``keys``, ``values``: of the site's attention, split into heads, before the scores.
``hidden``: the residual stream that is about to be cut.
``hidden_before``: the residual stream before the site's block.
``text_embedding``: one vector per sample; a recipe names the value of the graph.
``patch_entropy``: entropy in bits of the grey levels of each token's patch of pixels.
``accumulated``: the ``state`` of the site before, of the tokens it kept; 0 at the first.
``valid``: bool, False on padding. All others have a floating type.
"""

__all__ = ["SIGNALS"]
