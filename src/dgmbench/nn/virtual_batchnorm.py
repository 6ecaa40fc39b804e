"""Virtual batch normalisation: by a reference batch that never changes, so that examples do not affect each other."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

EPS = 1e-5


class VirtualBatchNorm(nn.Module):
    """Normalise each example by the moments of a reference batch of m examples and of itself, as one more.

    With mu and s^2 the reference's mean and (biased) variance of a channel, an example x of the batch has

        mean_x = mu + (x - mu) / (m + 1)        var_x = m / (m + 1) (s^2 + (x - mu)^2 / (m + 1))

    the moments of the reference with x joined to it. The reference itself has mu and s^2. It goes through the network
    in front of the batch, its activations beside theirs. There are no running statistics: training and evaluation are
    the same.

    Paper: Salimans et al. 2016, https://arxiv.org/abs/1606.03498 (section 3.5).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Float[Tensor, "n c"], *, reference: int) -> Float[Tensor, "n c"]:
        """Normalise activations whose first ``reference`` rows are those of the reference batch."""
        first, rest = x[:reference], x[reference:]
        mean, var = first.mean(0), first.var(0, unbiased=False)
        off = rest - mean
        own_mean = mean + off / (reference + 1)
        own_var = reference / (reference + 1) * (var + off.square() / (reference + 1))
        scaled = torch.cat([(first - mean) * torch.rsqrt(var + EPS), (rest - own_mean) * torch.rsqrt(own_var + EPS)])
        return scaled * self.weight + self.bias
