"""The source code that a model's numbers depend on: the file of its class and what that imports of the mathematics.

Files alone are read, so that a benchmark knows in no time which of its results are stale.
"""

import ast
import hashlib
import importlib.util
import inspect
import io
import tokenize
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import dgmbench

MATHEMATICS = ("dgmbench.models", "dgmbench.nn", "dgmbench.evaluation.features")
"""Packages whose files are followed; a user's own code is followed to the files beside it and those of its package."""


def source_hash(model: type) -> str:
    """16 hex digits for the source of a model's class."""
    return hash_of_files(source_files(Path(inspect.getfile(model))))


def hash_of_target(target: str) -> str | None:
    """The same for the class that ``_target_`` names, without importing it; None if its module cannot be found."""
    file = _file_of(target.rpartition(".")[0])
    return None if file is None else hash_of_files(source_files(file))


@cache
def evaluation_hash() -> str:
    """The same for everything that measures."""
    return hash_of_files(tuple(sorted(Path(dgmbench.__path__[0], "evaluation").rglob("*.py"))))


def hash_of_files(files: tuple[Path, ...]) -> str:
    """16 hex digits of the SHA-256 of the code in files in this order: comments and docstrings do not count."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(_code(file.read_bytes())).digest())
    return digest.hexdigest()[:16]


@cache
def _code(content: bytes) -> bytes:
    """Python source without its comments, strings that stand alone, and empty lines; the same on every Python."""
    try:
        tree = ast.parse(content)
        tokens = list(tokenize.tokenize(io.BytesIO(content).readline))
    except (SyntaxError, ValueError, tokenize.TokenError):
        return content
    lines = content.splitlines()
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][: len(token.line[:column].encode())]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            before, after = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
            if not before.strip() and not after.strip():
                lines[first : last + 1] = [b""] * (last + 1 - first)
    return b"\n".join(line.rstrip() for line in lines if line.strip())


def source_files(file: Path) -> tuple[Path, ...]:
    """A file and all that it imports, directly or not, of the mathematics and of its own folder; sorted by path.

    The file itself comes first, whatever its place, so that two models of one folder never share a hash.
    """
    found, waiting = {file}, [file]
    while waiting:
        for imported in _imports(waiting.pop()):
            if imported not in found:
                found.add(imported)
                waiting.append(imported)
    return (file, *sorted(found - {file}))


@cache
def _imports(file: Path) -> tuple[Path, ...]:
    """The files of the modules that one file imports, as far as they are followed."""
    inside = Path(dgmbench.__path__[0]) in file.parents
    names: list[str] = []
    files: list[Path | None] = []
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom) and not inside:  # relative
            folder = file.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            files += _modules(folder, *(folder / alias.name for alias in node.names))
    for name in dict.fromkeys(names):
        if name.startswith(MATHEMATICS):
            files.append(_file_of(name))
        elif not inside:
            first, *rest = name.split(".")
            folders = [file.parent / first, *(folder for folder in file.parents if folder.name == first)]
            files += _modules(*(folder.joinpath(*rest) for folder in folders))
    return tuple(path for path in dict.fromkeys(files) if path is not None and path.is_file())


def _modules(*paths: Path) -> list[Path]:
    """Where modules of these paths without ending would lie."""
    return [place for path in paths for place in (path.with_suffix(".py"), path / "__init__.py")]


def find_module(name: str) -> ModuleSpec | None:
    """Where a module lies, without importing it or the packages that it is in: that would run their code."""
    first, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(first)
        for end in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            within = ".".join((first, *rest[: end + 1]))
            spec = PathFinder.find_spec(within, spec.submodule_search_locations)
    except (ImportError, ValueError):
        return None
    return spec


def _file_of(module: str) -> Path | None:
    """Where a module lies; ours are found without importing their packages."""
    first, *rest = module.split(".")
    if first == "dgmbench":
        file = Path(dgmbench.__path__[0], *rest).with_suffix(".py")
        return file if file.is_file() else None
    spec = find_module(module)
    return Path(spec.origin) if spec is not None and spec.origin and spec.origin.endswith(".py") else None
