"""One epoch of the VAE beside pythae's at the same architecture, in one process.

    python scripts/benchmark_vae.py [--examples 5000] [--dim 784] [--batch 100] [--epochs 3]

Three loops are timed in turn: ours and pythae's model in the same bare torch loop, and pythae with its own trainer and
DataLoader. pythae is optional and needs no torch of its own:

    pip install --no-deps --target DIR pythae imageio
    PYTHONPATH=DIR python scripts/benchmark_vae.py
"""

import argparse
import contextlib
import io
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dgmbench.data.spec import Batch, DataSpec
from dgmbench.models.vae.vae import Vae


def bare_loop(parameters: Any, loss_of: Callable[[Tensor], Tensor], x: Tensor, batch: int) -> Callable[[], float]:
    """One epoch by batch indexing, Adam at 1e-3; returns the mean loss."""
    optimiser = torch.optim.Adam(parameters, lr=1e-3)

    def epoch() -> float:
        total = 0.0
        for index in torch.randperm(len(x)).split(batch):
            loss = loss_of(x[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(index)
        return total / len(x)

    return epoch


def pythae_model(ours: Vae) -> nn.Module:
    """The VAE of pythae with the layers and the weights of ours."""
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    encoder, decoder = list(ours.encoder), list(ours.decoder)
    last, latent = encoder[-1], ours.latent
    heads = [nn.Linear(last.in_features, latent) for _ in range(2)]
    with torch.no_grad():
        for i, head in enumerate(heads):
            head.weight.copy_(last.weight[i * latent : (i + 1) * latent])
            head.bias.copy_(last.bias[i * latent : (i + 1) * latent])

    def copies(layers: list[nn.Module]) -> nn.Sequential:
        made: list[nn.Module] = []
        for layer in layers:
            if isinstance(layer, nn.Linear):
                made.append(nn.Linear(layer.in_features, layer.out_features))
                made[-1].load_state_dict(layer.state_dict())
            else:
                made.append(type(layer)())
        return nn.Sequential(*made)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = copies(encoder[1:-1])
            self.mean, self.log_variance = heads

        def forward(self, x: Tensor) -> Any:
            h = self.body(x)
            return ModelOutput(embedding=self.mean(h), log_covariance=self.log_variance(h))

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.body = copies(decoder[:-1])

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.body(z).sigmoid())

    config = VAEConfig(input_dim=(ours.spec.dim,), latent_dim=latent, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(), decoder=Decoder())


def pythae_trainer(model: nn.Module, x: Tensor, batch: int) -> Callable[[], float]:
    """One epoch of pythae's own trainer."""
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    config = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), num_epochs=1, learning_rate=1e-3, per_device_train_batch_size=batch, no_cuda=True
    )
    trainer = BaseTrainer(model, BaseDataset(x.float(), torch.zeros(len(x))), training_config=config)
    trainer.prepare_training()

    def epoch() -> float:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            return float(trainer.train_step(1))

    return epoch


def main() -> None:
    logging.disable(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("examples", 5000), ("dim", 784), ("batch", 100), ("epochs", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = (torch.rand(args.examples, args.dim) < 0.3).to(torch.uint8)
    generator = torch.Generator().manual_seed(0)
    ours = Vae(DataSpec((args.dim,), "binary"))
    loops = {
        "ours, bare loop": bare_loop(
            ours.parameters(), lambda b: ours.loss("model", Batch(b), generator)[0], x, args.batch
        )
    }
    try:
        peer = pythae_model(ours)
    except ImportError as error:
        print(f"pythae cannot be imported ({error}); see --help for how to add it. Timing our model alone.")
    else:
        floats = x.float()
        loops["pythae's model, bare loop"] = bare_loop(
            peer.parameters(), lambda b: peer({"data": b}).loss, floats, args.batch
        )
        loops["pythae with its trainer"] = pythae_trainer(pythae_model(ours), x, args.batch)

    seconds: dict[str, list[float]] = {name: [] for name in loops}
    losses = {}
    for turn in range(args.epochs + 1):
        for name, epoch in loops.items():
            start = time.perf_counter()
            losses[name] = epoch()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    first = statistics.median(seconds["ours, bare loop"])
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:28s} {median:.2f} s an epoch, {median / first:.2f}x ours, loss {losses[name]:.2f}")


if __name__ == "__main__":
    main()
