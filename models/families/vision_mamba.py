"""Vision Mamba: patches read as a sequence, forwards and backwards, by state-space mixers.

The class token stands in the middle of the patches. Parameters have the names that the published
code gives them (hustvl/Vim, ``bimamba_type="v2"``), so that its weights fit once they are saved as
safetensors. Beside them lies a config.json with ``model_type`` "vim" and the sizes of ``Sizes``.

Tokens leave behind a block, in their order: ``top_vim`` with ``protected`` 0, ``close_gaps``, the
option ``flipped`` false and the signal ``ssm_out_backward`` from ``layers.<i>.mixer.from_behind``.
What is left are neighbours from there on, as in the published code. A selector that reads hidden
states does the same; the class token is followed wherever it moves. For TensorRT-RTX the share
has to be a constant (``budget``): its builder dies of a scan whose length an input decides.

Source: Vision Mamba (Zhu et al., ICML 2024, arXiv:2401.09417), sections 3.2 and 3.3.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BadInputError
from secateur.models.families import images
from secateur.models.families.core import FAMILIES, Config, FamilyModel
from secateur.models.families.hugging_face import check_weights
from secateur.models.selective_scan import selective_scan, sequence_convolution


@dataclass(frozen=True, slots=True)
class Sizes:
    """The numbers of a configuration; those with a default may be left out of it."""

    image_size: int
    hidden_size: int
    num_hidden_layers: int
    num_labels: int
    patch_size: int = 16
    num_channels: int = 3
    state_size: int = 16
    conv_kernel: int = 4
    expand: int = 2
    time_step_rank: int = 0
    """Width of what the step of a token is made from; 0 for a 16th of ``hidden_size``."""
    divide_output: bool = True
    """Whether both directions are averaged, not summed."""
    layer_norm_epsilon: float = 1e-5

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def width(self) -> int:
        """Channels of a mixer."""
        return self.expand * self.hidden_size

    @property
    def rank(self) -> int:
        """Width of what the step of a token is made from."""
        return self.time_step_rank or math.ceil(self.hidden_size / 16)


class Direction(nn.Module):
    """What one direction of a mixer does: convolution, and a scan whose numbers come from it.

    Its parameters are the mixer's, whose names tell the directions apart.
    """

    def __init__(self, *, backward: bool) -> None:
        super().__init__()
        self.backward = backward

    def forward(self, x: Tensor, mixer: Mixer) -> Tensor:
        """(B, E, N) -> (B, E, N), in the order of the tokens either way."""
        part = mixer.parts("_b" if self.backward else "")
        seen: Tensor = F.silu(sequence_convolution(x, part.kernel, part.bias, self.backward))
        rows = seen.transpose(1, 2)
        rank, states = part.step.in_features, part.decay.shape[1]
        low, write, read = part.project(rows).split([rank, states, states], dim=-1)
        step = F.softplus(part.step(low))[..., None]
        decay = torch.exp(step * -part.decay.float().exp())
        update = step * rows[..., None] * write[:, :, None]
        made: Tensor = selective_scan(decay, update, read, self.backward) + part.skip * rows
        return made.transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Parts:
    """Parameters of one direction; ``decay`` (E, S) and ``skip`` (E,)."""

    kernel: Tensor
    bias: Tensor
    project: nn.Linear
    step: nn.Linear
    decay: Tensor
    skip: Tensor


class Mixer(nn.Module):
    """Mixes tokens with those before and those behind them, gated by the token itself."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        wide, states, rank = sizes.width, sizes.state_size, sizes.rank
        self.share = 0.5 if sizes.divide_output else 1.0
        self.in_proj = nn.Linear(sizes.hidden_size, 2 * wide, bias=False)
        self.out_proj = nn.Linear(wide, sizes.hidden_size, bias=False)
        rates = torch.arange(1, states + 1).float().log().expand(wide, states)
        for end in ("", "_b"):
            kernel = nn.Conv1d(wide, wide, sizes.conv_kernel, groups=wide)
            self.add_module(f"conv1d{end}", kernel)
            self.add_module(f"x_proj{end}", nn.Linear(wide, rank + 2 * states, bias=False))
            self.add_module(f"dt_proj{end}", nn.Linear(rank, wide))
            self.register_parameter(f"A{end}_log", nn.Parameter(rates.clone()))
            self.register_parameter(f"D{end}", nn.Parameter(torch.ones(wide)))
        self.from_ahead = Direction(backward=False)
        self.from_behind = Direction(backward=True)

    def parts(self, end: str) -> Parts:
        """Return the parameters of a direction by the end of their names."""
        kernel, project, step = (
            self.get_submodule(f"{name}{end}") for name in ("conv1d", "x_proj", "dt_proj")
        )
        assert isinstance(kernel, nn.Conv1d)
        assert isinstance(project, nn.Linear)
        assert isinstance(step, nn.Linear)
        assert kernel.bias is not None
        decay, skip = self.get_parameter(f"A{end}_log"), self.get_parameter(f"D{end}")
        return Parts(kernel.weight, kernel.bias, project, step, decay, skip)

    def forward(self, hidden: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x, gate = self.in_proj(hidden).transpose(1, 2).chunk(2, dim=1)
        both = self.from_ahead(x, self) + self.from_behind(x, self)
        gated = both * F.silu(gate) * self.share
        made: Tensor = self.out_proj(gated.transpose(1, 2))
        return made


class Block(nn.Module):
    """The residual stream goes beside what is added to it, so that a block returns both."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.mixer = Mixer(sizes)
        self.norm = nn.RMSNorm(sizes.hidden_size, eps=sizes.layer_norm_epsilon)

    def forward(self, hidden: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) twice: what the block before made, and the stream in front of it."""
        residual = residual + hidden
        return self.mixer(self.norm(residual)), residual


class PatchEmbedding(nn.Module):
    """Cuts an image into patches."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        edge = sizes.patch_size
        self.proj = nn.Conv2d(sizes.num_channels, sizes.hidden_size, edge, edge)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, M, D)."""
        rows: Tensor = self.proj(pixel_values)
        return rows.flatten(2).transpose(1, 2)


class VisionMamba(nn.Module):
    """Classifies an image by the token in the middle of its patches."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(sizes)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, sizes.hidden_size))
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.patches + 1, sizes.hidden_size))
        self.layers = nn.ModuleList(Block(sizes) for _ in range(sizes.num_hidden_layers))
        self.norm_f = nn.RMSNorm(sizes.hidden_size, eps=sizes.layer_norm_epsilon)
        self.head = nn.Linear(sizes.hidden_size, sizes.num_labels)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, 3, S, S) to ``logits`` (B, C)."""
        patches = self.patch_embed(pixel_values)
        half = patches.shape[1] // 2
        middle = self.cls_token.expand(patches.shape[0], -1, -1)
        hidden = torch.cat([patches[:, :half], middle, patches[:, half:]], dim=1) + self.pos_embed
        residual = torch.zeros_like(hidden)
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        # Behind a selection the middle is elsewhere, and the class token stands there again.
        found = (hidden + residual)[:, hidden.shape[1] // 2]
        return {"logits": self.head(self.norm_f(found))}


@FAMILIES.register("vim")
def load(folder: Path, config: Config, part: str) -> FamilyModel:
    """Load a Vision Mamba that classifies images.

    Raises:
        BadInputError: a part is named, a size lacks or is none, or the weights do not fit.
    """
    if part:
        raise BadInputError("this model has no parts", where=str(folder), got=part)
    sizes = read_sizes(config, folder)
    net = VisionMamba(sizes)
    _fill(net, folder)
    prepare = functools.partial(images.pixels, images.preprocessing(folder, sizes.image_size))
    inputs = images.example_inputs(sizes.image_size)
    return FamilyModel(net.eval(), inputs, images.DYNAMIC, prepare, None)


def read_sizes(config: Config, folder: Path) -> Sizes:
    """Read the sizes of a configuration.

    Raises:
        BadInputError: one lacks or is not the number that it should be; patches that do not
            fill the image.
    """
    given = {one.name: config[one.name] for one in fields(Sizes) if one.name in config}
    where = str(folder / "config.json")
    for name, value in given.items():
        wanted = {"divide_output": bool, "layer_norm_epsilon": float}.get(name, int)
        least = 0 if name in ("divide_output", "time_step_rank") else 1e-12
        if type(value) is not wanted or value < least:  # type: ignore[operator]
            raise BadInputError(
                f"{name} is no size", where=where, got=repr(value), wanted=wanted.__name__
            )
    try:
        sizes = Sizes(**given)  # type: ignore[arg-type]
    except TypeError as error:
        raise BadInputError("a size of the model lacks", where=where, got=str(error)) from error
    if sizes.image_size % sizes.patch_size or sizes.patches % 2:
        raise BadInputError(
            "the class token has no place in the middle of these patches",
            where=where,
            got=f"patches of {sizes.patch_size} pixels in an image of {sizes.image_size}",
            wanted="patches that fill the image, an even number of them",
        )
    return sizes


def _fill(net: VisionMamba, folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_weights(folder)
    found: dict[str, Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            found |= load_file(path)
        net.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    except (RuntimeError, SafetensorError) as error:
        raise BadInputError(
            "the weights are not those of this Vision Mamba",
            where=str(folder),
            got=" ".join(str(error).split())[:500],
            wanted="the names of hustvl/Vim with bimamba_type v2",
        ) from error


__all__ = ["Sizes", "VisionMamba", "load", "read_sizes"]
