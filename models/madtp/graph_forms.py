"""Models in the form that is exported: tensors in, with the temperature among them."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.models.madtp.tasks import BlipNlvr, Compression


class NlvrByTemperature(nn.Module):
    """``BlipNlvr``, each sample pruned by itself; one graph serves every temperature."""

    def __init__(self, net: BlipNlvr) -> None:
        super().__init__()
        self.net = net

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, temperature: Tensor
    ) -> dict[str, Tensor]:
        """Return ``logits`` (B, 2); ``temperature`` is a scalar above 0."""
        compression = Compression.at(temperature)
        made: dict[str, Tensor] = self.net(pixel_values, input_ids, attention_mask, compression)
        return made


__all__ = ["NlvrByTemperature"]
