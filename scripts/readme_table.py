"""Keep the README's table of models in step with the cards: ``--write`` renews it, ``--check`` fails if it is stale."""

import argparse
import sys
from pathlib import Path

from dgmbench.config.cards import model_table_markdown

BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"


def renewed(text: str, table: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"the README lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", action="store_true", help="exit with 1 if the table is stale")
    action.add_argument("--write", action="store_true", help="renew the table")
    parser.add_argument("--readme", type=Path, default=Path(__file__).resolve().parent.parent / "README.md")
    arguments = parser.parse_args()
    text = arguments.readme.read_text(encoding="utf-8")
    new = renewed(text, model_table_markdown())
    if arguments.write:
        arguments.readme.write_text(new, encoding="utf-8")
    elif new != text:
        sys.exit(f"the table of models in {arguments.readme} is stale: run python {sys.argv[0]} --write")


if __name__ == "__main__":
    main()
