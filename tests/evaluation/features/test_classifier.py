"""The classifier: how good it is, when it is trained, and what its weights depend on."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dgmbench.data import DataSet
from dgmbench.errors import UserError
from dgmbench.evaluation.features import classifier
from dgmbench.evaluation.features.build import default_features
from dgmbench.evaluation.features.classifier import SHIPPED, Classifier

Build = Callable[..., Classifier]
Sets = Callable[..., DataSet]
NODE = {"_target_": "dgmbench.evaluation.features.classifier.Classifier", "images": 6000, "width": 4}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the sets that a classifier was trained for since."""
    names: list[str] = []
    train = Classifier._train

    def counted(net: Classifier, data: DataSet, note: Any) -> None:
        names.append(data.name)
        train(net, data, note)

    monkeypatch.setattr(Classifier, "_train", counted)
    return names


def forget() -> None:
    """As a new process would."""
    classifier._memory.clear()


@pytest.mark.parametrize("name", ["digits", "digits_binary"])
def test_the_shipped_classifier_is_as_good_as_its_record_says(
    name: str, digits: Sets, build: Build, tmp_path: Path
) -> None:
    data = digits(name)
    assert default_features(data) == ["classifier"]
    net = build("classifier", data, tmp_path)
    assert list(tmp_path.iterdir()) == []  # nothing was trained
    record = json.loads((SHIPPED / f"{name}.json").read_text())
    assert net.record()["net_accuracy"] == record["accuracy"]
    for split in ("valid", "test"):
        part = data.splits[split]
        right = net.logits(net(torch.from_numpy(part.x))).argmax(1) == torch.from_numpy(part.y)
        assert float(right.float().mean()) == pytest.approx(record["accuracy"][split], abs=1e-6)
    assert record["accuracy"]["test"] > 0.93
    train = net(torch.from_numpy(data.splits["train"].x))
    assert float(train.square().mean()) == pytest.approx(1, abs=0.01)


def test_a_classifier_is_trained_once_and_kept(stripes: Sets, build: Build, trained: list[str], tmp_path: Path) -> None:
    data, folder = stripes(), tmp_path / "features"
    torch.manual_seed(5)
    before = torch.get_rng_state()
    with torch.no_grad():  # as within an evaluation
        net = build(NODE, data, folder)
    assert torch.equal(before, torch.get_rng_state())
    assert net.accuracy["test"] > 0.8
    assert not any(p.requires_grad for p in net.parameters())
    forget()
    again = build(NODE, data, folder)
    assert (again.hash, again.accuracy) == (net.hash, net.accuracy)
    assert len(trained) == 1
    forget()
    assert build(NODE, data).hash == net.hash  # trained again, to the same bits
    assert build(NODE, data).hash == net.hash  # from memory, where there is no folder
    assert len(trained) == 2
    build({**NODE, "seed": 1}, data, folder)
    assert len(trained) == 3


def test_another_sets_classifier_is_not_taken(stripes: Sets, build: Build, tmp_path: Path) -> None:
    one, other = stripes(content_hash="a" * 64), stripes(content_hash="b" * 64, seed=1)
    assert build(NODE, one, tmp_path).hash != build(NODE, other, tmp_path).hash
    assert len(list(tmp_path.glob("classifier-stripes-*"))) == 2


def test_the_weights_do_not_depend_on_the_number_of_threads(digits: Sets, build: Build) -> None:
    node = {**NODE, "images": 1500, "width": 16}
    found = []
    for threads in (1, 2):
        forget()
        torch.set_num_threads(threads)
        found.append(build(node, digits()).hash)
        assert torch.get_num_threads() == threads
    assert found[0] == found[1]


@pytest.mark.parametrize("damage", ["cut", "changed", "no record", "record", "empty"])
def test_a_damaged_classifier_is_trained_again_and_replaced(
    damage: str, stripes: Sets, build: Build, trained: list[str], tmp_path: Path
) -> None:
    data = stripes()
    net = build(NODE, data, tmp_path)
    (kept,) = tmp_path.glob("classifier-stripes-*")
    weights, record = kept / "classifier.npz", kept / "classifier.json"
    content = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(content[:-10])
    elif damage == "changed":
        weights.write_bytes(content[:3000] + bytes(100) + content[3100:])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text("" if damage == "empty" else "{}")
    for times in (2, 2):
        forget()
        assert build(NODE, data, tmp_path).hash == net.hash
        assert len(trained) == times


def test_a_folder_that_cannot_be_written_costs_no_numbers(
    stripes: Sets, build: Build, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, blocked = stripes(), tmp_path / "file"
    blocked.write_text("")
    net = build(NODE, data, blocked / "features")
    assert build(NODE, data, blocked / "features").hash == net.hash
    assert len(trained) == 1  # kept in memory at least
    assert capsys.readouterr().err.count(f"Nothing can be kept in {blocked}/features (Not a directory)") == 1


def test_a_classifier_that_is_there_needs_no_lock(
    stripes: Sets, build: Build, trained: list[str], tmp_path: Path
) -> None:
    data = stripes()
    net = build(NODE, data, tmp_path)
    (lock,) = tmp_path.glob(".*.lock")
    lock.unlink()
    (lock / "below").mkdir(parents=True)  # no file can be opened here
    forget()
    assert build(NODE, data, tmp_path).hash == net.hash
    assert len(trained) == 1


def test_a_read_only_folder_serves_what_it_has(
    stripes: Sets, build: Build, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stripes()
    net = build(NODE, data, tmp_path)
    for place in (*tmp_path.glob("classifier-*"), tmp_path):
        place.chmod(0o555)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("nothing is read-only to this user")
    forget()
    assert build(NODE, data, tmp_path).hash == net.hash
    assert len(trained) == 1
    assert build({**NODE, "seed": 1}, data, tmp_path).accuracy["test"] > 0.8
    assert "Nothing can be kept in" in capsys.readouterr().err


def test_a_classifier_needs_labels(stripes: Sets, build: Build) -> None:
    data = stripes(labels=False)
    with pytest.raises(UserError, match="needs data with labels, and these have none; use random_conv"):
        build("classifier", data)
    assert default_features(data) == ["random_conv"]
