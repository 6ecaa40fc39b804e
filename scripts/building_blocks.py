"""Keep the page of building blocks in step with ``dgmbench.nn``: ``--write`` renews it, ``--check`` only looks."""

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import dgmbench

PAGE = Path(__file__).resolve().parent.parent / "docs" / "building_blocks.md"
HEAD = """# Building blocks

What `dgmbench.nn` offers to every model: the first sentence of each public class and function, by file. Import them
from their file: `from dgmbench.nn.scaling import Scaling`. Made by `python scripts/building_blocks.py --write`.
"""


def sentence(docstring: str | None) -> str:
    """The first sentence of a docstring on one line, safe in a cell of a table."""
    first = " ".join((docstring or "").partition("\n\n")[0].split())
    end = re.search(r"\.\s+(?=[A-Z`])", first)
    return (first[: end.start() + 1] if end else first).replace("|", "\\|").replace("``", "`")


def rows(file: Path) -> Iterator[str]:
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield f"| `{node.name}` | {sentence(ast.get_docstring(node))} |"


def page() -> str:
    parts = [HEAD]
    folder = Path(dgmbench.__path__[0], "nn")
    for file in sorted(folder.rglob("*.py")):
        found = list(rows(file))
        if found:
            name = ".".join(file.relative_to(folder).with_suffix("").parts)
            about = sentence(ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))))
            parts += [f"## {name}\n", f"{about}\n", "| name | what it is |\n|---|---|\n" + "\n".join(found) + "\n"]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit with 1 if the page is stale")
    action.add_argument("--write", action="store_true", help="renew the page")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is stale: run python {sys.argv[0]} --write")


if __name__ == "__main__":
    main()
