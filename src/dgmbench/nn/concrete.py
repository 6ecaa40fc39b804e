r"""The Concrete (Gumbel-softmax) distribution: a category made soft, a point of the simplex that gradients pass.

    y = softmax((log pi + g) / t),      g_k = -log(-log u_k), u_k uniform,

so that argmax y is a draw of the category pi at every temperature t, and y tends to its one-hot vector as t falls.

Papers: Maddison, Mnih, Teh 2017, https://arxiv.org/abs/1611.00712; Jang, Gu, Poole 2017,
https://arxiv.org/abs/1611.01144.
"""

import torch
from jaxtyping import Float
from torch import Generator, Tensor


def draw_concrete(
    log_probs: Float[Tensor, "... k"], temperature: float, generator: Generator | None = None
) -> Float[Tensor, "... k"]:
    """One draw y for each category, reparametrised."""
    uniform = torch.rand(log_probs.shape, generator=generator, device=log_probs.device, dtype=log_probs.dtype)
    tiny = torch.finfo(log_probs.dtype).tiny
    gumbel = -(-uniform.clamp_min(tiny).log()).clamp_min(tiny).log()
    return ((log_probs + gumbel) / temperature).softmax(-1)
