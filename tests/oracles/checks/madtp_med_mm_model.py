"""A small BLIP text encoder that looks at an image, end to end."""

from __future__ import annotations

from tests.oracles import madtp_nets

N_IMAGES = 1


def check(case) -> None:
    madtp_nets.check_text(case, N_IMAGES)


IS_LONG = True  # its exports
