"""What a model's numbers depend on: its file and the mathematics that it imports, and nothing else."""

import sys
from pathlib import Path

import pytest

import dgmbench
from dgmbench import source
from dgmbench.models.flow.realnvp import RealNvp

PACKAGE = Path(dgmbench.__path__[0])


def test_imported_mathematics_is_part_of_a_models_source() -> None:
    files = source.source_files(PACKAGE / "models" / "flow" / "realnvp.py")
    names = [file.relative_to(PACKAGE).as_posix() for file in files]
    assert names[0] == "models/flow/realnvp.py"
    assert {"models/flow/flow.py", "nn/couplings.py", "nn/bijections.py", "nn/batchnorm.py"} <= set(names)
    assert not any(name.startswith(("training/", "data/", "evaluation/")) for name in names)
    # nothing that is imported below these packages is missing: what importing the class loads is followed
    loaded = {name for name in sys.modules if name.startswith("dgmbench.nn.")} & {
        f"dgmbench.nn.{Path(name).stem}" for name in names if name.startswith("nn/")
    }
    assert "dgmbench.nn.bijections" in loaded


def test_the_hash_changes_with_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("import part\nimport json\nfrom dgmbench.nn.masked import MaskedMlp\n")
    (tmp_path / "part.py").write_text("import deeper\n")
    (tmp_path / "deeper.py").write_text("A = 1\n")
    (tmp_path / "beside.py").write_text("A = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    files = source.source_files(tmp_path / "mine.py")
    assert [file.name for file in files if file.parent == tmp_path] == ["mine.py", "deeper.py", "part.py"]
    assert PACKAGE / "nn" / "masked.py" in files
    before = source.hash_of_target("mine.Model")
    (tmp_path / "beside.py").write_text("A = 2\n")
    assert source.hash_of_target("mine.Model") == before
    (tmp_path / "deeper.py").write_text("A = 2\n")
    assert source.hash_of_target("mine.Model") != before


WRITTEN = """import torch  # the library


class Net:
    \"\"\"A net.\"\"\"

    def forward(self, x):
        # é twice
        return "é # no comment" + x * 2  # twice
"""


def test_comments_and_docstrings_do_not_count(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"

    def hashed(text: str) -> str:
        file.write_text(text, encoding="utf-8")
        return source.hash_of_files((file,))

    said = WRITTEN.replace("A net.", "A small net.\n\n    Of one layer.\n    ").replace("# twice", "# é, two times")
    bare = 'import torch\nclass Net:\n    def forward(self, x):\n        return "é # no comment" + x * 2\n'
    assert hashed(WRITTEN) == hashed(said) == hashed(bare)
    for old, new in (("x * 2", "x * 3"), ("no comment", "a comment"), ("import torch", "import torch, math")):
        assert hashed(WRITTEN.replace(old, new)) != hashed(WRITTEN), new
    # not alone on their lines: taken as they are
    assert hashed("A = 1; 'said'\n") != hashed("A = 1;\n")
    assert hashed("'said'; A = 1\n") != hashed("'said'; A = 2\n")
    assert hashed("no python, at all") != hashed("no python  at all")


def test_a_package_of_ones_own_is_followed(tmp_path: Path) -> None:
    files = {
        "mine/__init__.py": "",
        "mine/nets/net.py": "from .parts import A\nfrom ..top import B\nfrom . import sibling\nimport mine.other\n",
        "mine/nets/parts.py": "from mine.deep.layers import C\n",
        "mine/nets/sibling.py": "",
        "mine/nets/unused.py": "",
        "mine/top/__init__.py": "",
        "mine/other.py": "",
        "mine/deep/layers.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [file.relative_to(tmp_path).as_posix() for file in source.source_files(tmp_path / "mine/nets/net.py")]
    assert set(found) == set(files) - {"mine/__init__.py", "mine/nets/unused.py"}


def test_a_target_and_its_class_have_one_hash() -> None:
    assert source.hash_of_target("dgmbench.models.flow.realnvp.RealNvp") == source.source_hash(RealNvp)
    assert source.hash_of_target("dgmbench.models.flow.flow.Flow") != source.source_hash(RealNvp)
    assert source.hash_of_target("dgmbench.models.flow.no_such.Flow") is None
    assert source.hash_of_target("no_such_module.Flow") is None
