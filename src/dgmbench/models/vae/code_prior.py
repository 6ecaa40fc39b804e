r"""A PixelCNN of code maps, the prior of quantised models: p(i) = prod_t p(i_t | i_before(t), condition).

Codes are names, not levels, so they come embedded; then it is the residual PixelCNN of ``autoregressive/pixelcnn.py``.
The condition, if there is one, is a map of what is known of each place. With ``heads``, self-attention over all earlier
places follows each block. Sampling goes through the cache, where every feature is computed once.

Shapes and units: codes are (b, h, w) int64, conditions (b, features, h, w); ``log_prob`` is in nats per map, (b,).
"""

from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from dgmbench.errors import UserError
from dgmbench.models.autoregressive.attention import AttentionBlock
from dgmbench.models.autoregressive.pixelcnn import ResidualBlock
from dgmbench.models.autoregressive.raster import RasterBlock, RasterStack
from dgmbench.nn.levels import draw_categories, level_log_prob


class CodePrior(nn.Module):
    """Autoregressive distribution of maps of codes in raster order.

    Args:
        codes: K, at least 2.
        features: width of the embedding and of the maps between the blocks.
        blocks: residual blocks.
        kernel: odd width of the first convolution.
        condition: features of the condition's map; 0 without one.
        heads: of the attention after each block; 0 without it.
    """

    def __init__(
        self, codes: int, *, features: int, blocks: int, kernel: int = 7, condition: int = 0, heads: int = 0
    ) -> None:
        super().__init__()
        if heads and features % heads:
            raise UserError(
                f"{features} features of a prior cannot be shared out among {heads} heads; take a multiple."
            )
        self.embedding = nn.Embedding(codes, features)
        layers: list[RasterBlock] = []
        for _ in range(blocks):
            layers.append(ResidualBlock(features, 1, condition))
            layers += [AttentionBlock(features, heads=heads)] if heads else []
        self.net = RasterStack(
            1, inputs=features, features=features, kernel=kernel, blocks=layers, head=features, parameters=codes
        )

    def logits(self, index: Int[Tensor, "b h w"], condition: Tensor | None = None) -> Float[Tensor, "b h w k"]:
        """The logits of every code at each place, given those before it."""
        return cast(Tensor, self.net(self.embedding(index).movedim(-1, 1), condition)).movedim(1, -1)

    def log_prob(self, index: Int[Tensor, "b h w"], condition: Tensor | None = None) -> Float[Tensor, " b"]:
        """Log p(codes | condition)."""
        return level_log_prob(self.logits(index, condition), index).flatten(1).sum(1)

    @torch.no_grad()
    def sample(
        self, n: int, size: tuple[int, int], condition: Tensor | None = None, *, generator: Generator | None = None
    ) -> Int[Tensor, "n h w"]:
        """n maps, place by place."""
        height, width = size
        weight = self.embedding.weight
        noise = torch.rand(height, width, n, generator=generator, device=weight.device, dtype=weight.dtype)
        index = torch.zeros(n, height, width, dtype=torch.int64, device=weight.device)
        cache = self.net.cached(n, width, condition)
        for row in range(height):
            cache.start_row()
            for x in range(width):
                index[:, row, x] = draw_categories(cache.read(x, 0), noise[row, x])
                cache.write(x, 0, self.embedding(index[:, row, x]))
        return index
