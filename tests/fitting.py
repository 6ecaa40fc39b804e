"""A short training without the framework around it, for tests of what a model learns."""

import torch
from torch import Tensor

from dgmbench.data.spec import Batch
from dgmbench.models.contract import Model


def fit_by_adam(model: Model, data: Tensor, steps: int, *, lr: float = 5e-3, batch_size: int = 50) -> Model:
    """``steps`` of Adam on the model's only loss, on batches drawn with replacement; in evaluation mode at the end."""
    optimiser, g = torch.optim.Adam(model.parameters(), lr=lr), torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = Batch(data[torch.randint(len(data), (batch_size,), generator=g)])
        loss, _ = model.loss("model", batch, g)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        model.after_step("model", batch, g)
    return model.eval()
