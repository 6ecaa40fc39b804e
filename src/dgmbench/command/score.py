"""``dgm score``: measure samples that others made."""

from pathlib import Path

from dgmbench.command.parser import CONFIG_DIR, Parser, choices, parse
from dgmbench.command.tables import print_metrics
from dgmbench.errors import say


def run(rest: list[str]) -> int:
    """Run ``dgm score`` with these words and return the exit code."""
    parser = Parser(
        "score",
        "Measure samples that others made by every metric of samples: against a data set, or against other samples.\n"
        "Samples are a folder of pictures of one size, or an .npz (key x, or its only array) or .npy file.",
        choices("data", "protocol", "hardware")
        + """

examples:
  dgm score samples=my_samples/ data=cifar10
  dgm score samples=my_samples.npz data=mnist protocol.quality.samples=10000 to=scores.json
  dgm score samples=mine/ against=theirs/
""",
        "samples=PATH data=NAME|against=PATH [protocol=NAME] [to=FILE] [key=value ...]",
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=CONFIG_DIR)
    arguments = parse(parser, rest)
    from dgmbench.config import complete_data, complete_hardware, complete_paths, complete_protocol, compose, resolve

    cfg = resolve(compose("score", arguments.overrides, config_dirs=arguments.config_dir))
    protocol, hardware = complete_protocol(cfg["protocol"]), complete_hardware(cfg["hardware"])
    data = None if cfg.get("data") is None else complete_data(cfg["data"])
    against = None if cfg["against"] is None else Path(str(cfg["against"])).expanduser()
    from dgmbench.runs.score import score_samples
    from dgmbench.training.files import write_json

    found = score_samples(
        Path(str(cfg["samples"])).expanduser(),
        protocol,
        data=data,
        against=against,
        hardware=hardware,
        data_root=Path(complete_paths(cfg["paths"])["data"]),
    )
    print_metrics(found["metrics"])
    say(*found["notes"])
    if cfg["to"] is not None:
        target = Path(str(cfg["to"])).expanduser()
        write_json(target, found)
        say(target)
    return 0
