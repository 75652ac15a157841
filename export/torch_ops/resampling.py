"""Resizing of images."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from secateur.export.torch_ops.call import TORCH_OPS, Call

_NEAREST = {
    ("asymmetric", "floor"): "nearest",
    ("half_pixel", "round_prefer_ceil"): "nearest-exact",
}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
_SMOOTH = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}


@TORCH_OPS.register("Resize")
def resize(call: Call) -> Tensor:
    """(B, C, ...) -> (B, C, ...), by scales or to sizes, in the ways torch knows too."""
    x = call.tensor(0)
    rank = x.dim()
    axes = call.get_ints("axes") or tuple(range(rank))
    has_sizes = call.has(3)
    given = call.ints(3) if has_sizes else tuple(call.tensor(2).tolist())
    asked = dict(zip((a % rank for a in axes), given, strict=True))
    unchanged = tuple(x.shape) if has_sizes else (1.0,) * rank
    wanted = [asked.get(axis, unchanged[axis]) for axis in range(rank)]
    if tuple(wanted[:2]) != unchanged[:2] or rank - 2 not in _LINEAR:
        raise call.refuse("the batch or channel axis is resized")
    if call.get_str("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.refuse("the aspect ratio is kept")
    mode, corners = _mode(call, rank - 2)
    return F.interpolate(
        x,
        size=wanted[2:] if has_sizes else None,
        scale_factor=None if has_sizes else wanted[2:],
        mode=mode,
        align_corners=corners,
        antialias=bool(call.get_int("antialias", 0)),
    )


def _mode(call: Call, axes: int) -> tuple[str, bool | None]:
    """Return torch's names for how positions are mapped and values read."""
    transform = call.get_str("coordinate_transformation_mode", "half_pixel")
    kind = call.get_str("mode", "nearest")
    if kind == "nearest":
        rounding = call.get_str("nearest_mode", "round_prefer_floor")
        if (transform, rounding) in _NEAREST:
            return _NEAREST[transform, rounding], None
        raise call.refuse(f"nearest with {transform} and {rounding}")
    is_plain = call.get_float("cubic_coeff_a", -0.75) == -0.75 and not call.get_int(
        "exclude_outside", 0
    )
    if transform not in _SMOOTH or not is_plain or (kind == "cubic" and axes != 2):
        raise call.refuse(f"{kind} with {transform}")
    return "bicubic" if kind == "cubic" else _LINEAR[axes], _SMOOTH[transform]
