"""A small BLIP text encoder that looks at two images (NLVR2), end to end."""

from __future__ import annotations

from tests.oracles import madtp_nets

N_IMAGES = 2


def check(case) -> None:
    madtp_nets.check_text(case, N_IMAGES)


LEFT_OUT = {"case7": "the published code attaches masks to the wrong tokens (README)"}


IS_LONG = True  # its exports
