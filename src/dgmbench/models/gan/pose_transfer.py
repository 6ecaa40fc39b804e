"""What models of p(x | a picture of the same thing, both poses) share: the condition, pictures and held-out errors."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.errors import UserError
from dgmbench.models.contract import Model
from dgmbench.models.tasks import HeldOut
from dgmbench.nn.batchnorm import absorb_statistics
from dgmbench.nn.poses import PoseCondition, Posed
from dgmbench.nn.scaling import Scaling


class PoseTransfer(Model):
    """Base of these models; a subclass defines ``transferred`` and the losses."""

    plain = "copy"
    """What the error is compared with: the source itself."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__(spec)
        self.poses = PoseCondition(spec)  # refuses data without poses
        self.scaling = Scaling(spec)
        self.size = spec.shape[1], spec.shape[2]

    @abstractmethod
    def transferred(self, posed: Posed) -> Float[Tensor, "b c h w"]:
        """The scaled pictures in the target's pose."""

    def baseline(self, posed: Posed) -> Float[Tensor, "b c h w"]:
        """What costs nothing, scaled: the source as it is."""
        return posed.picture

    @torch.no_grad()
    def after_step(self, player: str, batch: Batch, generator: Generator) -> None:
        """Take up the batch-norm statistics of the network that stepped, if it has any."""
        net = getattr(self, player)
        assert isinstance(net, nn.Module)
        absorb_statistics(net)

    @torch.no_grad()
    def enhance(self, given: Tensor, *, generator: Generator | None = None) -> Tensor:
        """The picture in the target's pose, float (b, c, h, w) on the raw scale, within its bounds."""
        made = self.transferred(self.poses(given))
        return self.scaling.unrounded(made.clamp(-1, 1) if self.scaling.bounded else made)

    @torch.no_grad()
    def sample(
        self, n: int, y: Tensor | None = None, *, given: Tensor | None = None, generator: Generator | None = None
    ) -> Tensor:
        """The pictures (n, c, h, w) under n conditions, raw; nothing about them is random."""
        if given is not None and len(given) != n:
            raise UserError(f"{n} pictures need as many conditions, and {len(given)} are given.")
        return self.scaling.inverse(self.transferred(self.poses(given)))

    def objectives(self) -> dict[str, HeldOut]:
        """The error in the target's pose, that of what costs nothing, and their difference on the same examples."""
        unit = "scaled pixels"
        return {
            "target_error": HeldOut(unit, "lower"),
            f"{self.plain}_error": HeldOut(unit, "none"),
            f"target_error_over_{self.plain}": HeldOut(unit, "lower"),
        }

    @torch.no_grad()
    def held_out(self, batch: Batch, *, generator: Generator | None = None) -> dict[str, Tensor]:
        """Mean absolute differences to the true picture, of values scaled to [0, 1] (``real`` data as they are)."""
        assert batch.given is not None
        posed, x = self.poses(batch.given), self.scaling(batch.x)
        unit = 2.0 if self.scaling.bounded else 1.0
        made = self.transferred(posed)
        ours, plain = (
            (each - x).abs().flatten(1).mean(1) / unit
            for each in (made.clamp(-1, 1) if self.scaling.bounded else made, self.baseline(posed))
        )
        return {"target_error": ours, f"{self.plain}_error": plain, f"target_error_over_{self.plain}": ours - plain}
