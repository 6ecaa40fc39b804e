"""From a completed configuration to objects: device, data, model, optimisers, trained weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from dgmbench.config import instantiate
from dgmbench.config.targets import TARGET, locate
from dgmbench.data import DataSet, load
from dgmbench.data.pairs import check_pair, spec_from_card
from dgmbench.data.random import keyed_seed
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError, nearest
from dgmbench.models.contract import Model, Parameters, player_parameters
from dgmbench.nn.encoders import by_data
from dgmbench.training import standing
from dgmbench.training.ema import Ema

OptimizerFactory = Callable[[str, Parameters], Optimizer]


def count_devices(hardware: Mapping[str, Any]) -> int:
    """The number of processes a node runs: ``hardware.devices``, or the GPUs that are there if it is ``all``."""
    devices = hardware["devices"]
    return max(1, torch.cuda.device_count()) if devices == "all" else devices


def find_device(hardware: Mapping[str, Any], local_rank: int = 0) -> torch.device:
    """The device of ``hardware.accelerator``; asking for more GPUs than there are is a UserError."""
    wanted = hardware["accelerator"]
    available = torch.cuda.is_available()
    if wanted == "gpu" and not available:
        raise UserError("hardware=gpu was asked for, but PyTorch sees no GPU here; use hardware=cpu or hardware=auto.")
    if not available or wanted == "cpu":
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"hardware.devices={hardware['devices']} asks for more GPUs than the {torch.cuda.device_count()} that "
            "PyTorch sees here."
        )
    return torch.device("cuda", local_rank)


def build_trainer(hardware: Mapping[str, Any], device: torch.device, **more: Any) -> Any:
    """Lightning's Trainer for one of our epochs; what it would log, save, validate or show is done elsewhere."""
    import pytorch_lightning as pl

    precision: Any = {"32": "32-true", "bf16": "bf16-mixed"}[hardware["precision"]]
    return pl.Trainer(
        accelerator=lightning_accelerator(device),
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        inference_mode=False,
        **more,
    )


def lightning_accelerator(device: torch.device) -> str:
    """Lightning's word for a device."""
    return "gpu" if device.type == "cuda" else "cpu"


def load_data(completed: Mapping[str, Any], root: Path | None = None) -> DataSet:
    """The data set of a run, checked against the model's card before and after it is read."""
    names, card = completed["names"], completed["model"].get("card") or {}
    expected = spec_from_card(completed["data"])
    if expected is not None:
        check_pair(card, expected, names["data"], names["model"])
    data = load(completed["data"], root or Path(completed["paths"]["data"]).expanduser())
    check_pair(card, data.spec, names["data"], names["model"])
    return data


def settle(completed: dict[str, Any], spec: DataSpec) -> None:
    """Write what a model chooses by the data into its configuration: so says the run's name, and whoever reads it."""
    settings = completed["model"]
    if settings.get("net") == "auto":
        settings["net"] = by_data("auto", spec.shape)


def build_model(completed: Mapping[str, Any], spec: DataSpec) -> Model:
    """The model with fresh weights, a function of the run's seed."""
    node = {key: value for key, value in completed["model"].items() if key != "card"}
    locate(node.get(TARGET), "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed(completed["seed"], "weights"))
        model = instantiate(node, spec)
    if not isinstance(model, Model):
        raise UserError(
            f"model._target_={node['_target_']} is no dgmbench.models.contract.Model; derive it from that class."
        )
    return model


def optimizer_factory(settings: Mapping[str, Any], model: Model) -> OptimizerFactory:
    """How to make a player's optimiser: the shared settings, then ``players.<name>`` on top, then its ``groups``."""
    shared = {key: value for key, value in settings.items() if key not in ("players", "schedule")}
    locate(shared.get(TARGET), "optimizer")
    special, players = settings["players"], model.players()
    for name, own in special.items():
        if name not in players:
            raise UserError(nearest(name, players, what="optimizer.players setting for this model, named"))
        _check_groups(f"optimizer.players.{name}", own.get("groups", {}), players[name])

    def make(player: str, parameters: Parameters) -> Optimizer:
        own = {**shared, **special.get(player, {})}
        groups = own.pop("groups", {})
        if not isinstance(parameters, Mapping):
            return instantiate(own, parameters)
        # an optimiser of each group alone brings its settings to their form, and refuses wrong ones
        alone = {name: instantiate(_of_group(own, groups.get(name, {})), part) for name, part in parameters.items()}
        return instantiate(own, [{**each.param_groups[0], "name": name} for name, each in alone.items()])

    return make


def _check_groups(where: str, groups: Mapping[str, Any], parameters: Parameters) -> None:
    for name in groups:
        if not isinstance(parameters, Mapping):
            raise UserError(f"{where}.groups is set, but this player of the model has no groups; set {where} itself.")
        if name not in parameters:
            raise UserError(nearest(name, parameters, what=f"{where}.groups setting for this model, named"))


def _of_group(own: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The player's settings with those of one group on top, ``lr_multiplier`` taken into ``lr``."""
    done = {**own, **settings}
    multiplier = done.pop("lr_multiplier", None)
    if multiplier is None:
        return done
    if done.get("lr") is None:
        raise UserError("optimizer.players: lr_multiplier multiplies the player's lr, and this optimiser has none.")
    return done | {"lr": done["lr"] * multiplier}


def load_weights(model: Model, checkpoint: Mapping[str, Any]) -> None:
    """Put a checkpoint's weights into the model: the averaged ones if the run kept any, with the statistics
    of batch-norm at them, else the last ones.
    """
    prefix = "model."
    model.load_state_dict({key.removeprefix(prefix): v for key, v in checkpoint["state_dict"].items()})
    averaged = checkpoint["dgmbench"]["ema"]
    if averaged is not None:
        ema = Ema(player_parameters(model), 0.0)
        ema.load_state_dict(averaged)
        ema.copy_to_model()
        standing.write(model, ema.statistics)
    model.eval()
