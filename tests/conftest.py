"""Shared set-up: shapes are checked at run time, one thread a process, and a data root of its own.

A process that a test leaves running fails that test (``_nothing_left_running``); what a session leaves running, however
it ends, is killed by a guardian. ``--budgets`` prints what every row costs and fails where it is too much; ``--fast``
runs what fits into three minutes.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

jaxtyping.install_import_hook(["dgmbench.models", "dgmbench.nn"], "beartype.beartype")

import torch  # noqa: E402

from . import fast, process_tree  # noqa: E402
from .costs import Costs  # noqa: E402

GUARDIAN = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--budgets", action="store_true", help="print CPU seconds by row and file; fail over the budget")
    parser.addoption("--fast", action="store_true", help="run the cheapest tests only: three minutes on two cores")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--budgets"):
        config.pluginmanager.register(Costs(config))
    if not hasattr(config, "workerinput"):  # the controller of xdist's workers, or the only process
        config.stash[GUARDIAN] = process_tree.start_guardian()
    process_tree.adopt_orphans()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--fast"):
        fast.leave_out(config, items)


def pytest_unconfigure(config: pytest.Config) -> None:
    guardian = config.stash.get(GUARDIAN, None)
    if guardian is not None:
        process_tree.dismiss(guardian)


@pytest.fixture(autouse=True)
def _nothing_left_running() -> Iterator[None]:
    before = set(process_tree.descendants(os.getpid()))
    yield
    left = process_tree.end_leftovers(before)
    assert not left, f"this test has left processes running: {left}"


@pytest.fixture(scope="session", autouse=True)
def _data_root(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["DGM_DATA_DIR"] = str(tmp_path_factory.mktemp("data_root"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def train_run(tmp_path: Path) -> Callable[..., Any]:
    """Run ``dgm train`` with these overrides in this process; returns its Outcome."""
    from dgmbench.config import compose
    from dgmbench.runs.run import train

    def run(*overrides: str) -> Any:
        quiet = ["trainer.progress=false", f"paths.outputs={tmp_path}", "protocol=quick"]
        return train(compose("train", [*quiet, *overrides]))

    return run


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder without a word; what is called ``broken`` ends long before its end."""

    def do_GET(self) -> None:
        if self.path.endswith("broken"):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
            self.close_connection = True
        else:
            super().do_GET()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder and the address that it is served under."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()
