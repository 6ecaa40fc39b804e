"""``dgm evaluate``: measure a finished run again."""

from pathlib import Path

from dgmbench.command.parser import Parser, choices, parse
from dgmbench.command.tables import print_config
from dgmbench.errors import say


def run(rest: list[str]) -> int:
    """Run ``dgm evaluate`` with these words and return the exit code."""
    parser = Parser(
        "evaluate",
        "Measure a finished run again, under a protocol, without training it. What says most is printed, and\n"
        "'dgm show run=DIR' has all numbers.",
        choices("protocol", "hardware")
        + """

examples:
  dgm evaluate run=outputs/vae-digits_binary-s0-1a2b3c4d
  dgm evaluate run=DIR protocol.k=5000 protocol.splits=[valid,test]
""",
        "run=DIR [protocol=NAME] [key=value ...]",
    ).add_config_flags()
    arguments = parse(parser, rest)
    from dgmbench.config import complete_hardware, complete_paths, complete_protocol, compose, resolve

    cfg = resolve(compose("evaluate", arguments.overrides, config_dirs=arguments.config_dir))
    protocol, hardware = complete_protocol(cfg["protocol"]), complete_hardware(cfg["hardware"])
    paths = complete_paths(cfg["paths"])
    if arguments.cfg:
        return print_config({"run": cfg["run"], "protocol": protocol, "hardware": hardware, "paths": paths})
    from dgmbench.command.headline import print_headline
    from dgmbench.runs.evaluate import evaluate_run

    run = Path(str(cfg["run"])).expanduser()
    result = evaluate_run(run, protocol, hardware=hardware, data_root=Path(paths["data"]))
    print_headline(result, str(run))
    say(run)
    return 0
