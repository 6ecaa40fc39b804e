"""Composition, completion from signatures, instantiation, identity."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from dgmbench.config import complete, compose, config_hash, instantiate, options, resolve, rewrite, run_name
from dgmbench.config import schemas as settings
from dgmbench.config.signatures import build
from dgmbench.data.spec import DataSpec
from dgmbench.errors import UserError

OWN = Path(__file__).parent.parent / "my_configs"


@pytest.fixture(autouse=True)
def _own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(OWN)
    monkeypatch.delenv("DGM_OUTPUTS", raising=False)


def completed(*overrides: str) -> dict[str, Any]:
    return complete(compose("train", ["model=gaussian", *overrides], config_dirs=[OWN]))


def test_the_models_file_chooses_data_and_optimizer_and_the_command_line_wins() -> None:
    assert completed()["names"] == {"model": "gaussian", "data": "few_moons", "optimizer": "sgd"}
    names = completed("data=toy2d", "optimizer=adam")["names"]
    assert names == {"model": "gaussian", "data": "toy2d", "optimizer": "adam"}


def test_defaults_come_from_the_signature_and_yaml_wins() -> None:
    model = completed()["model"]
    assert model["sizes"] == [3, 4]
    assert model["rate"] == 2.0
    assert isinstance(model["rate"], float)
    assert model["part"] == {"_target_": "my_model.Start", "log_scale": 0.0}
    assert "spec" not in model
    optimizer = completed()["optimizer"]
    assert optimizer["momentum"] == 0
    assert optimizer["schedule"] == {"name": "constant", "warmup": "0ba", "final": 0.0}


def test_any_argument_can_be_set_whether_or_not_the_yaml_has_it() -> None:
    model = completed("model.sizes=[5]", "model.rate=3", "model.part.log_scale=1", "+model.centred=true")["model"]
    assert (model["sizes"], model["rate"], model["part"]["log_scale"], model["centred"]) == ([5], 3.0, 1.0, True)
    done = completed("optimizer.momentum=0.9", "data.seed=3", "optimizer.schedule.name=cosine", "data.binarise=none")
    assert (done["optimizer"]["momentum"], done["data"]["seed"]) == (0.9, 3)
    assert done["optimizer"]["schedule"]["name"] == "cosine"


@pytest.mark.parametrize("override", ["model.part=wide", "model/part=wide"])
def test_a_part_is_chosen_by_its_name(override: str) -> None:
    part = completed(override, "model.part.tries=3")["model"]["part"]
    assert part == {"_target_": "my_model.Wide", "log_scale": 2.0, "tries": 3}


@pytest.mark.parametrize("name", options("protocol"))
def test_every_protocol_is_complete_and_says_its_name(name: str) -> None:
    completed = complete(compose("train", [f"protocol={name}", "model=vae", "data=digits_binary"]))
    assert completed["protocol"]["name"] == name
    assert set(completed["protocol"]["ais"]) == {"chains", "temperatures", "spacing", "burn_in"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model=gausian", "There is no model 'gausian'; did you mean gaussian"),
        ("data=digit", "did you mean digits"),
        ("optimizer=adma", "did you mean adam"),
        ("trainer=defualt", "did you mean default"),
        ("model.part=wdie", "There is no model part 'wdie'; did you mean wide"),
        ("model.size=[1]", "There is no model setting 'size'; did you mean sizes"),
        ("model.part.log_scal=1", "There is no model.part setting 'log_scal'; did you mean log_scale"),
        ("model.spec=1", "There is no model setting 'spec'"),
        ("data.vlaid=3", "There is no data setting 'vlaid'; did you mean valid"),
        ("optimizer.lrr=1", "There is no optimizer setting 'lrr'; did you mean lr"),
        ("optimizer.players.critic.lrr=1", "There is no optimizer.players.critic setting 'lrr'; did you mean lr"),
        ("optimizer.schedule.nmae=cosine", "There is no optimizer.schedule setting 'nmae'; did you mean name"),
        ("optimizer.schedule.name=cosin", "must be one of constant, linear, cosine; did you mean cosine"),
        ("trainer.bugdet=3ep", "There is no trainer setting 'bugdet'; did you mean budget"),
        ("trainer.budget.x=3", "trainer.budget=20ep is a single value: it has no key 'x'"),
        ("hardware.device=2", "did you mean devices"),
        ("protocol.ais.chain=3", "did you mean chains"),
        ("protocol.splits=[test,test]", "must name each only once"),
        ("protocol.checkpoint=[best,final,best]", "must name each only once"),
        ("protocol.semi_supervised.labels=[100,100]", "must name different numbers of labels"),
        ("protocol.semi_supervised.labels=[0]", "must name different numbers of labels, each at least 1"),
        ("protocol.max_examples=1", "protocol.max_examples=1 must be at least 2"),
        ("protocol.k=0", "protocol.k=0 must name numbers of importance samples, each at least 1"),
        ("protocol.k=[1,0]", r"protocol.k=\[1, 0\] must name numbers"),
        ("protocol.k=[]", "must name numbers"),
        ("protocol.ais.temperatures=0", "protocol.ais.temperatures=0 must be more than zero"),
        ("protocol.ais.temperatures=[0,0.5]", "must increase strictly from 0 to 1"),
        ("protocol.ais.temperatures=[[0.5,0],[1,2]]", r"a piece of an annealing schedule is \[end, steps\]"),
        ("protocol.ais={spacing:adaptive,temperatures:[0,1],chains:3}", "give their number, or spacing=even"),
        ("protocol.ais.spacing=log", "must be one of even, adaptive"),
        ("protocol.decoder_ais.example=3", "did you mean examples"),
        ("protocol.decoder_ais.examples=-1", r"must be zero \(off\) or more"),
        ("protocol.decoder_ais.leapfrog=0", "must be more than zero"),
        ("protocol.parzen.samples=-1", r"must be zero \(off\) or more"),
        ("protocol.parzen=10", "must be a mapping"),
        ("paths.output=x", "There is no paths setting 'output'; did you mean outputs"),
        ("modle.rate=3", "There is no setting 'modle'; did you mean model"),
        ("+sede=3", "There is no setting 'sede'; did you mean seed"),
        ("logger=tensorbord", "There is no logger 'tensorbord'"),
        ("~data", "has no data"),
        ("model.sizes=3", r"model.sizes=3 must be a list of whole numbers"),
        ("model.sizes=[a]", r"model.sizes=\[a\] must be a list of whole numbers"),
        ("model.reduction=men", "model.reduction=men must be one of mean, sum; did you mean mean"),
        ("model.rate=fast", "model.rate=fast must be a number"),
        ("model.rate=true", "model.rate=true must be a number"),
        ("model.centred=1", "model.centred=1 must be true or false"),
        ("model.part.log_scale=null", "model.part.log_scale=null must be a number"),
        ("data.train=1.5", "data.train=1.5 must be a whole number"),
        ("data.binarise=thresh", "did you mean threshold"),
        ("seed=1.5", "seed=1.5 must be a whole number"),
        ("seed=one", "seed=one must be a whole number"),
        ("seed=-1", "seed=-1 must be a whole number"),
        ("seed=true", "seed=true must be a whole number"),
        ("model.sizes=[true]", "model.sizes=.*whole number"),
        ("trainer.budget=20", "trainer.budget=20 has no unit"),
        ("trainer.budget=-5ep", "trainer.budget=-5ep must be more than zero"),
        ("trainer.validate=60s", "unit 's', which does not fit here"),
        ("trainer.batch_size=0", "trainer.batch_size=0 must be more than zero"),
        ("trainer.batch_size=many", "trainer.batch_size=many must be a whole number"),
        ("trainer.clip=-1", "must be more than zero"),
        ("trainer.ema=1", "less than 1"),
        ("trainer.progress=maybe", "must be true or false"),
        ("hardware.precision=16", "must be one of 32, bf16"),
        ("protocol.splits=[tset]", "must be a list of"),
        ("protocol.checkpoint=[]", "at least one"),
        ("optimizer.schedule.warmup=1", "no unit"),
        ("optimizer.schedule.final=2", "from 0 to 1"),
        ("model._target_=my_model.Gausian", "did you mean Gaussian"),
        ("model._target_=my_modle.Gaussian", "there is no module 'my_modle'"),
        ("model._target_=Gaussian", "not a dotted name"),
        ("model._target_=os.system", "standard library"),
        ("model._target_=subprocess.Popen", "standard library"),
        ("model._target_=my_model.math.prod", "neither a class nor a function"),
        ("model._target_=dgmbench.config.files.Path", "is no model that a configuration may name"),
        ("rate", "not of the form key=value"),
        ("model.sizes=[1", "cannot be read"),
        ("seed=0,1", "add -m"),
        ("trainer.budget=${oc.env:NOT_SET_ANYWHERE}", "The value of trainer.budget cannot be resolved"),
        ("model/optimizer=x", "nothing to override|There is no|Could not"),
        ("trainer=null", "There is no trainer 'null'"),
    ],
)
def test_bad_overrides_end_in_one_sentence(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        completed(override)
    assert "\n" not in str(caught.value)


def test_a_missing_model_points_to_the_list() -> None:
    with pytest.raises(UserError, match=r"No model is chosen: add model=NAME \('dgm list'"):
        compose("train", [])


def test_a_missing_value_is_named() -> None:
    with pytest.raises(UserError, match="run must be given"):
        resolve(compose("sample", []))


def test_numbers_written_otherwise_are_the_same() -> None:
    one, other = completed("model.rate=3", "hardware.precision=32"), completed("model.rate=3.0")
    assert one == other
    assert completed("data.train=1e2")["data"]["train"] == 100


def test_paths_are_taken_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    paths = completed("paths.outputs=/tmp/it's a=b,c", "paths.data=~/sets")["paths"]
    assert paths == {"outputs": "/tmp/it's a=b,c", "data": "/home/someone/sets"}


def test_environment_variables_choose_the_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGM_OUTPUTS", "/somewhere/runs")
    monkeypatch.setenv("DGM_DATA_DIR", "/somewhere/data")
    assert completed()["paths"] == {"outputs": "/somewhere/runs", "data": "/somewhere/data"}


def test_a_folder_of_configurations_with_signs_in_its_name(tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "it's, mine=1"
    shutil.copytree(OWN, folder)
    assert complete(compose("train", ["model=gaussian"], config_dirs=[folder]))["names"]["model"] == "gaussian"


def test_broken_yaml_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("a: [1\nb: 2", encoding="utf-8")
    with pytest.raises(UserError, match="not valid YAML"):
        compose("train", ["model=mine"], config_dirs=[tmp_path])


def test_composing_inside_a_running_hydra_leaves_it_in_place() -> None:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(OWN), version_base="1.3"):
        active = GlobalHydra.instance().hydra
        compose("train", ["model=vae"])
        assert GlobalHydra.instance().hydra is active


def test_instantiate_builds_nested_nodes_and_leaves_metadata_out() -> None:
    from dgmbench.data.spec import DataSpec

    done = completed("model.part.log_scale=1.5")
    model = instantiate(done["model"], DataSpec((2,), "real"))
    assert type(model).__name__ == "Gaussian"
    assert model.log_scale.tolist() == [1.5, 1.5]
    optimizer = instantiate(done["optimizer"], model.parameters(), lr=0.5)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.5


def test_instantiate_errors() -> None:
    from dgmbench.data.spec import DataSpec

    node = completed()["model"]
    with pytest.raises(UserError, match=r"does not fit .* missing a required argument: 'spec'"):
        instantiate(node)
    with pytest.raises(UserError, match="does not fit"):
        instantiate({**node, "sise": 3}, DataSpec((2,), "real"))
    with pytest.raises(UserError, match="cannot be imported"):
        instantiate({"_target_": "no_such_package.Thing"})
    with pytest.raises(UserError, match="not a dotted name"):
        instantiate({"rate": 1})


def test_a_module_that_fails_while_importing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needs_more.py").write_text("import package_that_is_not_there", encoding="utf-8")
    (tmp_path / "breaks.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="No module named 'package_that_is_not_there'"):
        instantiate({"_target_": "needs_more.Thing"})
    with pytest.raises(UserError, match="ZeroDivisionError"):
        instantiate({"_target_": "breaks.Thing"})


@pytest.mark.parametrize(
    "override",
    [
        "paths.outputs=/elsewhere",
        "paths.data=/elsewhere",
        "logger=wandb",
        "hardware=cpu",
        "hardware.threads=2",
        "trainer.progress=false",
        "trainer.checkpoint=500ba",
        "protocol=quick",
    ],
)
def test_what_cannot_change_the_result_is_not_in_the_hash(override: str) -> None:
    assert config_hash(completed(override), "data") == config_hash(completed(), "data")


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model.rate=1",
        "model.centred=true",
        "model.part=wide",
        "data.train=200",
        "optimizer.lr=1",
        "optimizer.momentum=0.5",
        "optimizer.schedule.name=linear",
        "optimizer.players.model.lr=1",
        "trainer.budget=21ep",
        "trainer.batch_size=99",
        "trainer.ema=0.9",
        "hardware.precision=bf16",
        "hardware.devices=2",
    ],
)
def test_what_changes_the_result_is_in_the_hash(override: str) -> None:
    assert config_hash(completed(override), "data") != config_hash(completed(), "data")


def test_the_hash_covers_the_data_and_neither_card_nor_order_nor_source() -> None:
    done = completed()
    assert config_hash(done, "data") != config_hash(done, "other data")
    other = copy.deepcopy(dict(reversed(done.items())))
    other["model"]["card"]["summary"] = "reworded"
    other["data"]["path"] = "/elsewhere"
    other["data"]["download"] = True
    assert config_hash(other, "data") == config_hash(done, "data")


def test_the_runs_name() -> None:
    done = completed("seed=7")
    assert run_name(done, "data") == f"gaussian-few_moons-s7-{config_hash(done, 'data')}"
    assert len(config_hash(done, "data")) == 8


def test_completing_twice_changes_nothing() -> None:
    done = completed("model.part=wide", "optimizer.players.model.lr=1")
    assert complete(done) == done


def test_trainer_periods_of_every_unit() -> None:
    for period in ("30s", "2ep", "500ba", "1e4im"):
        assert completed(f"trainer.checkpoint={period}")["trainer"]["checkpoint"] == period


def test_every_logger_has_a_configuration() -> None:
    assert set(settings.LOGGERS) == set(options("logger"))


def test_names_in_a_list_stand_for_their_configurations() -> None:
    done = complete(compose("train", ["model=dbn", "model.estimator=[cd,pcd]"]))
    kinds = [(node["_target_"].rpartition(".")[2], node["k"]) for node in done["model"]["estimator"]]
    assert kinds == [("CD", 1), ("PCD", 1)]
    assert done["model"]["estimator"][1]["chains"] == 100
    words = rewrite(["model=dbn", "model.estimator=[cd,pcd]"])
    assert complete(compose("train", words)) == done, "a sweep's jobs are rewritten twice"
    with pytest.raises(UserError, match="no model estimator 'pdc'; did you mean pcd"):
        compose("train", ["model=dbn", "model.estimator=[cd,pdc]"])
    model = instantiate(done["model"], DataSpec((6,), "binary"))
    assert [type(rbm.estimator).__name__ for rbm in model.rbms] == ["CD", "PCD"]


def test_a_constructor_that_refuses_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *, error: type[Exception]) -> None:
            raise error("no good.\nsecond line")

    monkeypatch.setattr("dgmbench.config.signatures.locate", lambda *_: Broken)
    for error in (ValueError, RuntimeError, MemoryError, OverflowError, TypeError):
        with pytest.raises(UserError, match=r"^part cannot be built .*: no good\.$") as caught:
            build({"_target_": "a.Broken", "error": error}, "part")
        assert isinstance(caught.value.__cause__, error)
    with pytest.raises(ZeroDivisionError):
        build({"_target_": "a.Broken", "error": ZeroDivisionError}, "part")
