"""A small BLIP text encoder that MADTP prunes, end to end."""

from __future__ import annotations

from tests.oracles import madtp_nets

N_IMAGES = 0


def check(case) -> None:
    madtp_nets.check_text(case, N_IMAGES)


IS_LONG = True  # its exports
