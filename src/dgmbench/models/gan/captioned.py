"""What models of pictures of captions share: they are held to pictures that they have not seen by an energy score.

With draws X and X' under the caption of x, the score of x is E ||X - x|| - 1/2 E ||X - X'||. It is strictly proper: in
the mean over examples it is least for the distribution of pictures given their captions, and a model that draws good
pictures of other captions is worse. Without captions it is half the energy distance, up to a constant of the data.

Paper: Gneiting, Raftery 2007, https://doi.org/10.1198/016214506000001437 (equation 22).
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from dgmbench.data.spec import Batch
from dgmbench.models.contract import Model
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.scaling import Scaling


class ScoredByDraws(Model):
    """A model whose objective on held-out data is the energy score of its samples."""

    scaling: Scaling

    @abstractmethod
    def sample(
        self, n: int, y: Tensor | None = None, *, given: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """n raw pictures, one of each caption (n, t) if the data have captions."""

    def objectives(self) -> dict[str, HeldOut]:
        """The energy score, of values scaled to [-1, 1]."""
        return {"energy_score": HeldOut(self.scaling.unit, "lower")}

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """The score of each example, by two draws under its caption."""
        a, b = (self.scaling(self.sample(len(batch.x), given=batch.given, generator=generator)) for _ in range(2))
        return {"energy_score": energy_score(self.scaling(batch.x), a, b)}


def energy_score(
    x: Float[Tensor, "b ..."], a: Float[Tensor, "b ..."], b: Float[Tensor, "b ..."]
) -> Float[Tensor, " b"]:
    """An unbiased estimate of the score of each example x, by two independent draws a and b."""
    near = ((a - x).flatten(1).norm(dim=1) + (b - x).flatten(1).norm(dim=1)) / 2
    return near - (a - b).flatten(1).norm(dim=1) / 2
