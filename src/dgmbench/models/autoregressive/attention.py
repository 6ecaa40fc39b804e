"""Self-attention over the past of a pixel, as a block of a raster stack, and one pixel at a time.

Every pixel attends to itself and to all before it in raster order, where its features already leave out its own value.
Keys and queries also see where they are. Maps have one channel; several heads share the features.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dgmbench.models.autoregressive.raster import RasterBlock

UNIT = 16.0
"""Pixels of the unit in which queries and keys are told their place."""


class AttentionBlock(RasterBlock):
    """h + W softmax(q k^T / sqrt(d), over the pixels up to this one) v, with q, k of h and the place, and v of h."""

    def __init__(self, features: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(features + 2, features), nn.Linear(features + 2, features)
        self.value, self.out = nn.Linear(features, features), nn.Linear(features, features)

    def projected(
        self, h: Float[Tensor, "n p f"], places: Float[Tensor, "p 2"]
    ) -> tuple[Float[Tensor, "n e p d"], Float[Tensor, "n e p d"], Float[Tensor, "n e p d"]]:
        """Queries, keys and values of every head e at some pixels."""
        placed = torch.cat([h, places.expand(len(h), -1, -1)], 2)
        each = (self.query(placed), self.key(placed), self.value(h))
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in each)
        return q, k, v

    def forward(self, h: Float[Tensor, "b f h w"], condition: Tensor | None) -> Float[Tensor, "b f h w"]:
        """All pixels at once; the condition is that of other blocks."""
        flat = h.flatten(2).mT
        rows, columns = torch.meshgrid(*(torch.arange(n, device=h.device) for n in h.shape[2:]), indexing="ij")
        places = torch.stack([rows, columns], -1).flatten(0, 1).to(h) / UNIT
        seen = F.scaled_dot_product_attention(*self.projected(flat, places), is_causal=True)
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return h + out.mT.view(h.shape)

    def cached(self, n: int, width: int, condition: Tensor | None) -> "CachedAttention":
        """The block for n images of which the pixels before the current one are known."""
        return CachedAttention(self)


class CachedAttention:
    """An ``AttentionBlock``, one pixel at a time; it keeps the keys and values of all before."""

    def __init__(self, block: AttentionBlock) -> None:
        self.block, self.row = block, -1
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def start_row(self) -> None:
        """Begin the next row."""
        self.row += 1

    def step(self, x: int, channel: int, h: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """The features at the pixel in column x."""
        place = torch.tensor([[self.row, x]], device=h.device, dtype=h.dtype) / UNIT
        query, key, value = self.block.projected(h[:, None], place)
        self.keys.append(key)
        self.values.append(value)
        seen = F.scaled_dot_product_attention(query, torch.cat(self.keys, 2), torch.cat(self.values, 2))
        out: Tensor = self.block.out(seen.transpose(1, 2).flatten(1))
        return h + out
