"""YAML that is more than it looks, and files that are none: refused at once, wherever a configuration is read."""

import os
import socket
from pathlib import Path

import pytest

from dgmbench.command import main as cli
from dgmbench.config import compose
from dgmbench.config.bounded import MOST_BYTES, load_yaml, read_bytes
from dgmbench.config.files import read_yaml
from dgmbench.errors import UserError

ALIASES = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(30))
MERGES = "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9) if i else '{k: v}'}]}}\n" for i in range(30))
BOMBS = {
    "aliases": (ALIASES, "more than 100,000 values when its aliases are written out"),
    "merges": (MERGES, "more than 100,000 values when its aliases are written out"),
    "a loop": ("a: &a [*a]", "an alias of what it is itself a part of"),
    "brackets": ("[" * 200_000, "nested more than 100 levels"),
    "few brackets": ("[" * 9_000, "nested too deeply|not valid YAML"),
    "size": ("a: 1\n" * MOST_BYTES, "configurations have no more than"),
    "values": ("- 1\n" * 250_000, "more than 100,000 values"),
    "an object": ("!!python/object/apply:os.getcwd []", "not valid YAML"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_text_that_is_more_than_it_looks(kind: str, tmp_path: Path) -> None:
    text, sentence = BOMBS[kind]
    with pytest.raises(UserError, match=f"^FILE .*({sentence})"):
        load_yaml(text, "FILE")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=f"mine.yaml .*({sentence})"):
        read_yaml(tmp_path / "model" / "mine.yaml")


def test_aliases_of_reasonable_size_are_read() -> None:
    assert load_yaml("a: &a {k: [1, 2]}\nb: {<<: *a, c: *a}", "FILE") == {
        "a": {"k": [1, 2]}, "b": {"k": [1, 2], "c": {"k": [1, 2]}}
    }  # fmt: skip
    assert load_yaml("", "FILE") is None


@pytest.mark.parametrize("verb", ["sample", "evaluate", "rerun", "diff", "report"])
@pytest.mark.parametrize("kind", ["aliases", "merges", "brackets"])
def test_no_verb_hangs_on_a_run_s_configuration(
    verb: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(BOMBS[kind][0])
    (run / "result.json").write_text("{}")
    words = {"diff": [str(run), str(run)], "report": [str(run)], "rerun": [str(run)]}.get(verb, [f"run={run}"])
    code = cli.main([verb, *words])
    assert code == (0 if verb == "report" else 2), capsys.readouterr()
    assert "Traceback" not in capsys.readouterr().err


def test_nor_on_one_in_a_folder_of_configurations(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "slow.yaml").write_text("_target_: torch.optim.Adam\n" + MERGES)
    with pytest.raises(UserError, match="when its aliases are written out"):
        compose("train", ["model=vae", "optimizer=slow"], config_dirs=[tmp_path])
    (tmp_path / "optimizer" / "slow.yaml").write_text("lr: [1")  # one that nobody chooses may be wrong in other ways
    compose("train", ["model=vae"], config_dirs=[tmp_path])


def test_settings_of_any_length_are_answered_at_once() -> None:
    with pytest.raises(UserError, match=r"model\.hidden_sizes=\[1,1.* has 100,0\d\d signs"):
        compose("train", ["model=vae", f"model.hidden_sizes=[{'1,' * 49_990}1]"])


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder"])
def test_only_regular_files_are_read(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("x.yaml")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match=r"no regular file|No such device"):
        read_bytes(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(path)


@pytest.mark.parametrize("name", ["config.yaml", "result.json", "status.json", "metrics.jsonl", "traceback.txt"])
def test_a_pipe_in_a_run_s_folder_holds_nobody_up(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("seed: 0\n")
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert cli.main(["report", str(tmp_path)]) in (0, 2)
    assert cli.main(["sample", f"run={run}"]) == 2
