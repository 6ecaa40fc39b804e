"""The wheel carries everything: installed elsewhere, it lists and composes from another folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and unpacked as an installer does it."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    site = folder / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def test_the_wheel_works_from_another_folder(installed: Path, tmp_path: Path) -> None:
    code = (
        "import sys, dgmbench\n"
        "from dgmbench.command.main import main\n"
        "from dgmbench.config import config_dir\n"
        f"assert dgmbench.__file__.startswith({str(installed)!r}), dgmbench.__file__\n"
        f"assert str(config_dir()).startswith({str(installed)!r}), config_dir()\n"
        "sys.exit(main(['list']) or main(['train', 'model=rbm', '--cfg']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Boltzmann machines" in done.stdout
    assert "dgmbench.models.boltzmann.rbm.Rbm" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_wheel_has_every_configuration_and_the_licence(installed: Path) -> None:
    shipped = {
        str(file.relative_to(installed / "dgmbench")) for file in (installed / "dgmbench/configs").rglob("*.yaml")
    }
    assert shipped == {str(file.relative_to(ROOT)) for file in (ROOT / "configs").rglob("*.yaml")}
    assert (installed / "dgmbench/bench/report/survey.yaml").is_file()
    (info,) = installed.glob("*.dist-info")
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text(encoding="utf-8")
    assert "dgm = dgmbench.command.main:main" in (info / "entry_points.txt").read_text(encoding="utf-8")
