"""``dgm verify``: prove what can be proved of a model."""

from dgmbench.command.parser import Parser, choices, parse
from dgmbench.command.tables import print_config, print_table


def run(rest: list[str]) -> int:
    """Run ``dgm verify`` with these words and return the exit code."""
    parser = Parser(
        "verify",
        "Prove what can be proved of a model on a tiny instance: its densities, its training, save and resume.\n"
        "The exit code is 1 if a check fails.",
        choices("model")
        + """

examples:
  dgm verify model=made
  dgm verify model=rbm model.estimator=pcd
  dgm verify --config-dir my_configs model=my_model
""",
        "[--config-dir DIR] model=NAME [key=value ...]",
    ).add_config_flags()
    arguments = parse(parser, rest)
    from dgmbench.config import complete, compose
    from dgmbench.config.cards import read_cards

    completed = complete(compose("train", arguments.overrides, config_dirs=arguments.config_dir))
    if arguments.cfg:
        return print_config(completed)
    card = read_cards(arguments.config_dir)[completed["names"]["model"]]
    from rich.console import Console

    from dgmbench.verify import verify_config

    console = Console(stderr=True)
    with console.status("verifying") as status:
        checks = verify_config(completed, card, progress=lambda part: status.update(f"verifying: {part}"))
    verdicts = {True: "passed", False: "FAILED", None: "undecided"}
    rows = [(c.name, _cell(c.measured), _cell(c.tolerance), verdicts[c.passed], c.note) for c in checks]
    print_table(("check", "measured", "tolerance", "verdict", "note"), rows)
    counts = {word: sum(verdicts[c.passed] == word for c in checks) for word in verdicts.values()}
    print(f"model={card.name}: " + ", ".join(f"{count} {word}" for word, count in counts.items() if count))
    return 1 if counts["FAILED"] else 0


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
