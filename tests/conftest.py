"""Shared set-up: shapes are checked at run time, one thread a process, and a data root of its own."""

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
