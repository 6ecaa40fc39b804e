"""A configuration from somebody else runs no code: what a ``_target_`` may name, at every depth and in every verb."""

import json
import pickle
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from dgmbench.command import main as cli
from dgmbench.config import complete, compose, import_from, instantiate, resolve, run_name, targets
from dgmbench.config.signatures import build, complete_node
from dgmbench.config.sweeps import require_harmless
from dgmbench.config.targets import locate, role_of
from dgmbench.data import DataSet, load
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError
from dgmbench.models.boltzmann.estimators import Estimator
from dgmbench.source import find_module
from dgmbench.training.files import AtomicCheckpointIO

OWN = Path(__file__).parents[1] / "my_configs"
WORDS = (
    "model=rbm",
    "data=digits_binary",
    "protocol=quick",
    "hardware=cpu",
    "trainer.budget=1ba",
    "trainer.progress=false",
)


@cache
def digits() -> DataSet:
    """The data of these runs."""
    return load(resolve(compose("train", [*WORDS]))["data"], Path("/nowhere"))


class Evil:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# What is tried, with FILE for a pickle, PROOF for a file that is not to be made and KEPT for one that is not to change.
NODES: dict[str, dict[str, Any]] = {
    "a pickle of torch": {"_target_": "torch.load", "f": "FILE.pt", "weights_only": False},
    "a pickle of numpy": {"_target_": "numpy.load", "file": "FILE.npy", "allow_pickle": True},
    "a pickle of joblib": {"_target_": "joblib.load", "filename": "FILE.pkl"},
    "a pickle by way of a module of ours": {"_target_": "dgmbench.data.cifar10.pickle.loads", "data": "x"},
    "a package of torch": {"_target_": "torch.package.PackageImporter", "file_or_buffer": "FILE.pkl"},
    "a repository": {"_target_": "torch.hub.load", "repo_or_dir": "FILE", "model": "x", "source": "local"},
    "a compiler": {"_target_": "torch.utils.cpp_extension.load", "name": "x", "sources": ["FILE.pkl"]},
    "a shell": {"_target_": "os.system", "command": "touch PROOF"},
    "a shell under another name": {"_target_": "numpy.os.system", "command": "touch PROOF"},
    "a process": {"_target_": "subprocess.Popen", "args": ["touch", "PROOF"]},
    "an expression": {"_target_": "builtins.eval", "source": "open('PROOF', 'w')"},
    "YAML with objects": {"_target_": "yaml.unsafe_load", "stream": "!!python/object/apply:os.mkdir [PROOF]"},
    "a function of ours": {"_target_": "dgmbench.training.files.write_json", "path": "PROOF", "value": 1},
    "a class of ours that empties a file": {"_target_": "dgmbench.training.files.RowWriter", "path": "KEPT"},
    "our command line": {"_target_": "dgmbench.command.main.main", "argv": ["list"]},
    "our command line, by importing it": {"_target_": "dgmbench.__main__.Main"},
    "something that builds others": {"_target_": "hydra.utils.instantiate", "config": {"_target_": "os.getcwd"}},
    "a module that is only imported": {"_target_": "loud_package.Thing"},
    "a module in an installed package": {"_target_": "quiet_package.loud.Thing"},
    "code in the folder of the run": {"_target_": "code_of_the_run.Part"},
    "a layer of torch": {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
    "a part of another kind": {"_target_": "dgmbench.nn.adversarial_losses.Hinge"},
    "a reader": {"_target_": "dgmbench.data.npz.Npz", "path": "FILE.npy"},
}


class Attack:
    def __init__(self, folder: Path) -> None:
        self.proof, self.kept, self.run = folder / "proof", folder / "kept.jsonl", folder / "run"
        self.kept.write_text("kept\n")
        evil = Evil(self.proof)
        torch.save(evil, folder / "evil.pt")
        np.save(folder / "evil.npy", np.array([evil], object), allow_pickle=True)
        (folder / "evil.pkl").write_bytes(pickle.dumps(evil))
        loud = f"import pathlib\npathlib.Path({str(self.proof)!r}).touch()\nclass Thing: pass\nclass Part: pass\n"
        packages = folder / "installed"
        for file in ("loud_package.py", "quiet_package/loud.py", "quiet_package/__init__.py"):
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            (packages / file).write_text(loud)
        self.run.mkdir()
        (self.run / "code_of_the_run.py").write_text(loud)
        self.names = {"FILE": str(folder / "evil"), "PROOF": str(self.proof), "KEPT": str(self.kept)}

    def node(self, name: str) -> dict[str, Any]:
        """One of the nodes with the names of the files put in."""
        text = json.dumps(NODES[name])
        for word, path in self.names.items():
            text = text.replace(word, path)
        found: dict[str, Any] = json.loads(text)
        return found

    def write_run(self, change: Callable[[dict[str, Any]], object]) -> Path:
        """The folder of a run, finished by its looks, whose configuration was changed by somebody."""
        config = complete(compose("train", [*WORDS, f"paths.outputs={self.run.parent}"]))
        change(config)
        (self.run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        result = {key: {} for key in ("metrics", "protocols", "objective", "cost", "versions")}
        data_hash = digits().content_hash
        result |= {"data_hash": data_hash, "versions": {"dgmbench": "0"}}
        (self.run / "result.json").write_text(json.dumps(result))
        checkpoint = {
            "state_dict": {},
            "dgmbench": {"clock": {"images": 0}},
            "run": {"name": run_name(config, data_hash)},
        }
        (self.run / "checkpoints").mkdir(exist_ok=True)
        AtomicCheckpointIO().save_checkpoint(checkpoint, self.run / "checkpoints" / "best.ckpt")
        return self.run

    def check(self) -> None:
        """Nothing has happened."""
        assert not self.proof.exists()
        assert self.kept.read_text() == "kept\n"


@pytest.fixture
def attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attack:
    made = Attack(tmp_path)
    for folder in (tmp_path / "installed", made.run):
        monkeypatch.syspath_prepend(str(folder))
    installed = (*targets._installed(), tmp_path / "installed")
    monkeypatch.setattr(targets, "_installed", lambda: installed)
    before = set(sys.modules)
    yield made  # type: ignore[misc]
    made.check()
    assert not {name for name in set(sys.modules) - before if name.startswith(("loud_", "quiet_", "code_of"))}


def in_a_model(node: object) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["model"].update(estimator=node)


@pytest.mark.parametrize("name", NODES)
def test_a_node_in_a_run_s_configuration_is_refused(
    name: str, attack: Attack, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a part of the model, in a key that the model does not have, in a list, and as the model itself."""
    node = attack.node(name)
    for change in (
        in_a_model(node),
        lambda config: config["model"].update(flow=node),
        in_a_model([{"x": [node]}]),
        lambda config: config.update(model={**config["model"], **node}),
    ):
        folder = attack.write_run(change)
        assert cli.main(["sample", f"run={folder}", "n=2"]) == 2
        message = capsys.readouterr().err
        assert re.match(r"dgm: .*(is no |standard library|not a node|does not fit|cannot be imported|neither)", message)
        assert "checkpoint" not in message
        assert len(message.splitlines()) == 1
        attack.check()


@pytest.mark.parametrize("verb", ["evaluate", "sample", "rerun", "rerun --fresh", "report", "diff"])
@pytest.mark.parametrize("place", ["model", "data", "optimizer", "features", "parts"])
def test_no_verb_builds_what_a_run_s_configuration_should_not_name(verb: str, place: str, attack: Attack) -> None:
    node = attack.node("a pickle of torch")

    def change(config: dict[str, Any]) -> None:
        if place == "features":
            config["protocol"]["quality"]["features"] = [node]
        elif place == "parts":
            config["protocol"]["parts"] = ["quiet_package.loud.Thing"]
        else:
            config[place].update(node)
            config[place]["inner"] = node

    run = str(attack.write_run(change))
    words = {
        "evaluate": ["evaluate", "protocol=quick", f"run={run}"],
        "sample": ["sample", f"run={run}", "n=2"],
        "rerun": ["rerun", run],
        "rerun --fresh": ["rerun", run, "--fresh", f"{run}-again"],
        "report": ["report", run],
        "diff": ["diff", run, run],
    }[verb]
    code = cli.main(words)
    assert code == (0 if verb in ("report", "diff") else 2)
    attack.check()


@pytest.mark.parametrize("name", ["a pickle of torch", "a module in an installed package", "a function of ours"])
@pytest.mark.parametrize("where", ["suite", "model", "part", "protocol"])
def test_nodes_in_a_folder_of_configurations_and_in_suites(
    name: str, where: str, attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, node = tmp_path / "theirs", attack.node(name)
    settings = list(WORDS)
    written = json.dumps(node).replace('"', "").replace(": ", ":")
    card = yaml.safe_load((Path(__file__).parents[2] / "configs" / "model" / "rbm.yaml").read_text())["card"]
    files: dict[str, Any] = {
        "suite/theirs.yaml": {
            "title": "theirs",
            "cells": [{"models": ["rbm"], "overrides": [*WORDS[1:], f"model.estimator={written}"]}],
        },
        "model/theirs.yaml": {"_target_": "dgmbench.models.boltzmann.rbm.Rbm", "card": card, "estimator": node},
        "model/estimator/theirs.yaml": node,
        "features/theirs.yaml": {"name": "theirs", **node},
    }
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(yaml.safe_dump(content))
    outputs = f"paths.outputs={tmp_path / 'outputs'}"
    words = {
        "suite": ["bench", "suite=theirs", "--dry-run", outputs],
        "model": ["train", *settings, outputs, "model=theirs"],
        "part": ["train", *settings, outputs, "model.estimator=theirs"],
        "protocol": ["train", *settings, outputs, "protocol.quality.features=[theirs]"],
    }[where]
    assert cli.main([*words[:1], "--config-dir", str(folder), *words[1:]]) == 2
    assert "that a configuration may name" in capsys.readouterr().err


# ---------------------------------------------------------------------- what is allowed


def test_a_model_of_ones_own_takes_parts_of_its_own_and_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_model.py").write_text(
        "from collections.abc import Callable\nfrom typing import Any\nimport torch\nfrom torch import nn\n"
        "from dgmbench.models.contract import Model\n"
        "from dgmbench.models.boltzmann.estimators import Estimator, CD\n"
        "class Part(nn.Module): pass\n"
        "class Odd:\n    def __init__(self, *, inner=None): self.inner = inner\n"
        "def make(): return 'made'\n"
        "class Mine(Model):\n"
        "    def __init__(self, spec, *, net: nn.Module = None, odd=None, estimator: Estimator = None,\n"
        "                 make: Callable[[], Any] = None, plain: int = 0):\n"
        "        super().__init__(spec)\n        self.got = net, odd, estimator, make\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    spec, part = DataSpec((2,), "binary"), {"_target_": "their_model.Part"}
    node = {
        "_target_": "their_model.Mine", "net": part, "odd": {"_target_": "their_model.Odd", "inner": [part]},
        "estimator": {"_target_": "dgmbench.models.boltzmann.estimators.CD", "k": 2},
        "make": {"_target_": "their_model.make"},
    }  # fmt: skip
    for model in (instantiate(node, spec), instantiate(complete_node(node, "model", supplied=("spec",)), spec)):
        net, odd, estimator, made = model.got
        names = [type(each).__name__ for each in (net, odd, odd.inner[0], estimator)]
        assert (names, made) == (["Part", "Odd", "Part", "CD"], "made")
    wrong = {
        "net": ({"_target_": "their_model.Odd"}, "is no part for .*net: it does not derive from torch.nn"),
        "estimator": (part, "is no part for .*estimator: it does not derive from .*Estimator"),
        "odd": ({"_target_": "their_model.torch.load"}, "is no part for"),
        "make": ({"_target_": "their_model.torch.hub.load"}, "is no part for"),
        "plain": (part, "plain must be a whole number, not a node"),
    }
    for key, (value, sentence) in wrong.items():
        with pytest.raises(UserError, match=sentence):
            instantiate({**node, key: value}, spec)
        with pytest.raises(UserError, match=sentence):
            complete_node({**node, key: value}, "model", supplied=("spec",))
    with pytest.raises(UserError, match="it is a function, and a class is asked for"):
        instantiate({**node, "odd": {"_target_": "their_model.make"}}, spec)
    with pytest.raises(UserError, match=r"is no model: it does not derive from dgmbench\.models\.contract\.Model"):
        complete_node(part, "model")


def test_arguments_are_looked_at_before_parts_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counted.py").write_text("made = []\nclass Part:\n    def __init__(self): made.append(self)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import counted  # type: ignore[import-not-found]

    part = {"_target_": "counted.Part"}
    with pytest.raises(UserError, match="does not fit"):
        build({**part, "unknown": part}, "part")
    assert counted.made == []


def test_code_in_a_run_s_folder_is_nobody_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lies_there.py").write_text("class Part: pass\n")
    assert locate("lies_there.Part", "part").__name__ == "Part"
    (tmp_path / "config.yaml").write_text("model: {}\ndata: {}\n")  # any program may have one
    assert targets.is_own("lies_there")
    (tmp_path / "config.yaml").write_text("model: {}\ndata: {}\nprotocol: {}\nnames: {}\n")
    with pytest.raises(UserError, match="that a configuration may name"):
        locate("lies_there.Part", "part")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [])
    import_from([OWN])
    assert sys.path == [str(OWN)]


class Shape(Protocol):
    """A protocol."""


@pytest.mark.parametrize(
    ("hint", "bases"),
    [
        (int, None), (str | None, None), (Sequence[int], None), (Literal["a", "b"], None), (tuple[float, ...], None),
        (Annotated[int, "metres"], None), (Mapping[str, float], None), (type[Exception], None), (None, None),
        (Any, ()), (object, ()), (list, ()), (dict[str, Any], ()), (Shape, ()), ("Later", ()), (int | Any, ()),
        (nn.Module, ("torch.nn.modules.module.Module",)),
        (Estimator | Sequence[Estimator] | None, ("dgmbench.models.boltzmann.estimators.Estimator",)),
        (Literal["a"] | Estimator, ("dgmbench.models.boltzmann.estimators.Estimator",)),
        (Annotated[list[nn.Module], "layers"], ("torch.nn.modules.module.Module",)),
        (Callable[[int], nn.Module], ()),
    ],
)  # fmt: skip
def test_what_a_type_asks_for(hint: Any, bases: tuple[str, ...] | None) -> None:
    role = role_of(hint, "model.x")
    assert (None if role is None else role.bases) == bases
    assert role is None or role.functions == (hint == Callable[[int], nn.Module])


def test_modules_are_found_without_importing_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "outer_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("raise SystemExit(3)\n")
    (package / "module.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    spec = find_module("outer_package.inner.module")
    assert spec is not None
    assert spec.origin == str(package / "module.py")
    assert find_module("outer_package.inner.missing") is None
    assert find_module("outer_package.inner.module.Class") is None
    assert "outer_package" not in sys.modules


@pytest.mark.parametrize(
    "hydra",
    [
        {"callbacks": {"x": {"_target_": "subprocess.Popen", "args": ["touch", "PROOF"]}}},
        {"callbacks": {"x": {"_target_": "hydra.experimental.callbacks.pickle.loads"}}},
        {"sweeper": {"_target_": "os.system"}},
        {"launcher": {"_target_": "${oc.env:X}"}},
        {"job_logging": {"handlers": {"console": {"class": "subprocess.Popen", "args": ["touch", "PROOF"]}}}},
        {"job_logging": {"formatters": {"x": {"()": "logging.os.system", "command": "touch PROOF"}}}},
        {"hydra_logging": {"handlers": {"console": {"stream": "ext://loud_package.Thing"}}}},
    ],
)
def test_a_file_cannot_make_hydra_build_anything_for_a_sweep(
    hydra: dict[str, Any], attack: Attack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "theirs" / "trainer" / "evil.yaml"
    file.parent.mkdir(parents=True)
    content = json.dumps({"hydra": hydra}).replace("PROOF", str(attack.proof))
    file.write_text(f"# @package _global_\n{yaml.safe_dump(json.loads(content))}")
    words = [*WORDS, f"paths.outputs={tmp_path}", "+trainer@_global_=evil", "seed=0,1"]
    assert cli.main(["train", "-m", "--config-dir", str(file.parents[1]), *words]) == 2
    assert "nothing else is built for a sweep" in capsys.readouterr().err


def test_hydra_s_own_launchers_and_sweepers_are_harmless() -> None:
    compose("train", ["model=vae"])
    for target in ("hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
                   "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
                   "hydra._internal.core_plugins.basic_launcher.BasicLauncher"):  # fmt: skip
        require_harmless({"launcher": {"_target_": target, "sampler": {"_target_": "optuna.samplers.TPESampler"}}})
    with pytest.raises(UserError, match="nothing else is built"):
        require_harmless({"sweeper": {"sampler": {"_target_": "optuna.samplers.os.system"}}})
