"""A run's weights in the form in which they are shared: a folder with ``model.safetensors``, what they were trained
with and on, and a page about the model, which ``load_run``, the verbs that take a run, and ``trainer.start_from`` read.

The file's metadata name the run and hold the hash of the weights; configuration and data have to give the same name.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dgmbench import __version__
from dgmbench.config import run_name
from dgmbench.config.bounded import read_bytes
from dgmbench.errors import UserError
from dgmbench.runs.folder import RunFolder
from dgmbench.training.files import disk_errors, write_atomically
from dgmbench.training.tensors import weights_hash

FORMAT = "dgmbench"


def share_run(
    path: Path, *, rule: Literal["best", "final"] = "best", to: Path | None = None, data_root: Path | None = None
) -> Path:
    """Write the folder, by default below the run's ``exports``, and return it. It has its name when all is there."""
    from dgmbench.runs.load import load_run  # which reads such folders, too

    save = _safetensors().torch.save
    run = load_run(path, checkpoint=rule, device="cpu", data_root=data_root)
    result, weights = run.result, run.model.state_dict()
    name = run_name(run.config, run.data_hash)
    target = to or run.path / "exports" / (name if rule == "best" else f"{name}-{rule}")
    if target.exists():
        raise UserError(f"{target} exists already; remove it, or name another by to=PATH.")
    metadata = {
        "format": FORMAT,
        "run": name,
        "checkpoint": rule,
        "images": str(run.images),
        "sha256": weights_hash(weights),
        "dgmbench": __version__,
    }
    partial = target.with_name(f".{target.name}.partial")
    with disk_errors(target):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            folder = RunFolder(partial)
            # one tensor each: parameters that a model shares would be refused
            apart = {key: value.detach().cpu().clone().contiguous() for key, value in weights.items()}
            write_atomically(folder.shared, save(apart, metadata=metadata))
            folder.write_config(_without_places(run.config), relative=True)
            folder.write_spec(run.spec, run.data_hash)
            if result is not None:
                folder.write_result(
                    {**result, **({"origin": _nameless(result["origin"])} if "origin" in result else {})}
                )
            write_atomically(partial / "README.md", page(run.config, result, metadata, weights).encode())
            os.replace(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def read_shared(folder: RunFolder, rule: str) -> dict[str, Any]:
    """The weights of such a folder in the form of a checkpoint, compared with the hash that they were written with."""
    path = folder.shared
    module = _safetensors()
    try:
        content = read_bytes(path)
        weights = module.torch.load(content)
        with module.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        images = int(metadata.get("images", 0))
    except OSError as error:
        raise UserError(f"The weights {path} cannot be read: {error.strerror}.") from error
    except (module.SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [""])[0].rstrip(".")
        raise UserError(f"The weights {path} are damaged ({reason}); put a good copy in their place.") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} was not written by 'dgm export run=DIR what=weights', so nothing says what it is of.")
    if metadata.get("sha256") != weights_hash(weights):
        raise UserError(f"The weights {path} are not those that were written; put a good copy in their place.")
    if metadata.get("checkpoint") != rule:
        raise UserError(
            f"{folder.path} holds the {metadata.get('checkpoint')} weights of its run only, not the {rule} ones."
        )
    return {
        "state_dict": {f"model.{name}": value for name, value in weights.items()},
        "dgmbench": {"ema": None, "clock": {"images": images}},
        "run": {"name": metadata.get("run")},
    }


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise UserError(
            "Weights are shared by safetensors, which is not installed: pip install safetensors."
        ) from error
    return safetensors


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without where its owner keeps things; its name does not depend on them."""
    data, trainer = dict(config["data"]), {**config["trainer"], "continue_from": None, "start_from": None}
    if data.get("path"):
        data["path"] = Path(data["path"]).name
    origin = {"origin": _nameless(config["origin"])} if config.get("origin") else {}
    paths = {"outputs": "outputs", "data": "~/.cache/dgmbench"}
    return {**config, "data": data, "trainer": trainer, "logger": {"name": "jsonl"}, "paths": paths, **origin}


def _nameless(origin: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _nameless(value) if isinstance(value, Mapping) else value
        for key, value in origin.items()
        if key != "folder"
    }


# ---------------------------------------------------------------------- the page


def page(
    config: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    metadata: Mapping[str, str],
    weights: Mapping[str, Tensor],
) -> str:
    """The folder's README: what the model is, what it was trained on, what it reaches, how it is used."""
    names, card = config["names"], config["model"].get("card") or {}
    paper = card.get("paper") or {}
    lines = [
        f"# {names['model']} on {names['data']}",
        "",
        f"{card.get('summary', '')}".strip(),
        "",
        *([f"[{paper['authors']} {paper['year']}: {paper['title']}]({paper['link']})", ""] if paper else []),
        f"- weights: {metadata['checkpoint']} ones of the run `{metadata['run']}`, after {int(metadata['images']):,} "
        f"images; {sum(v.numel() for v in weights.values()):,} numbers, sha256 of their content `{metadata['sha256']}`",
        f"- trained for {config['trainer']['budget']} in batches of {config['trainer']['batch_size']}, "
        f"seed {config['seed']}",
        f"- likelihood: {card.get('likelihood', 'not said')}",
        f"- made by dgmbench {metadata['dgmbench']}",
        "",
        "```python",
        "import dgmbench",
        "",
        'run = dgmbench.load_run("THIS FOLDER"'
        + ("" if metadata["checkpoint"] == "best" else ', checkpoint="final"')
        + ")",
        "run.sample(16, seed=0)",
        "```",
        "",
    ]
    if result is not None:
        lines += ["| metric | value | se | unit | kind | protocol |", "|---|---|---|---|---|---|"]
        for name, metric in sorted(result["metrics"].items()):
            if "@" not in name and metric["value"] is not None:
                error = "" if metric["se"] is None else f"{metric['se']:.2g}"
                about = f"{metric['unit']} | {metric['kind']} | {metric['protocol_id']}"
                lines.append(f"| {name} | {metric['value']:.6g} | {error} | {about} |")
        lines += ["", "Protocols by their ids, and versions, are in `result.json`.", ""]
    return "\n".join(lines)
