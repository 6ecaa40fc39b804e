"""``dgm train``: one run, or several with ``-m``."""

from typing import Any

from dgmbench.command.parser import Parser, choices, parse
from dgmbench.command.tables import print_config
from dgmbench.errors import UserError, say


def run(rest: list[str]) -> int:
    """Run ``dgm train`` with these words and return the exit code."""
    parser = Parser(
        "train",
        "Train a model, evaluate it and draw samples. The last line printed is the folder of the run; the same\n"
        "command resumes a run that was interrupted, and does nothing if it is done.",
        choices("model", "data", "optimizer", "trainer", "hardware", "logger", "protocol")
        + """

some settings:
  trainer.budget=20ep      or 5000ba (batches), 3e6im (images)     trainer.batch_size=100
  optimizer.lr=1e-3        optimizer.schedule.name=cosine          seed=0
  paths.outputs=DIR        paths.data=DIR                          model.KEY=VALUE (any argument of the class)

examples:
  dgm train model=vae
  dgm train model=vae data=digits trainer.budget=5ep model.latent=8
  dgm train model=rbm model.estimator=pcd model.estimator.k=5
  dgm train -m model=vae,made seed=0,1
  dgm train -m model=vae seed=0,1,2,3 hydra/launcher=joblib
  dgm train --config-dir my_configs model=my_model
  dgm train experiment=burda2016_vae_mnist
  dgm train run=outputs/vae-digits_binary-s0-1a2b3c4d epochs=40     a finished run goes on, to 40 epochs in all
  dgm train model=vae data=digits trainer.start_from=DIR            starts from the weights of another run
""",
        "[-m] [--cfg] [--config-dir DIR] model=NAME|run=DIR [key=value ...]",
    ).add_config_flags()
    parser.add_argument("-m", "--multirun", action="store_true", help="several runs: key=a,b,c or Hydra's sweepers")
    arguments = parse(parser, rest)
    if any(word.startswith("run=") for word in arguments.overrides):
        from dgmbench.command.going_on import longer

        if arguments.multirun:
            raise UserError("run=DIR goes on with one run: leave out -m.")
        settings = longer(arguments.overrides)
        return print_config(settings) if arguments.cfg else train_one(settings)
    if any(word.startswith("experiment=") for word in arguments.overrides):
        from dgmbench.bench.suite import expand_experiments

        arguments.overrides = expand_experiments(arguments.overrides, arguments.config_dir)
    if arguments.multirun:
        if arguments.cfg:
            raise UserError("--cfg shows one run's configuration: leave out -m and give one value for each key.")
        from dgmbench.command.multirun import multirun

        return multirun(arguments.overrides, arguments.config_dir)
    from dgmbench.config import complete, compose

    cfg = compose("train", arguments.overrides, config_dirs=arguments.config_dir)
    if arguments.cfg:
        return print_config(complete(cfg))
    quiet = cfg.trainer.progress is False
    if not quiet:  # at once: PyTorch alone takes seconds
        print(f"{cfg.names.model} on {cfg.names.data}: loading PyTorch, the data and the model ...", flush=True)
    if cfg.trainer.get("dry_run"):
        from dgmbench.runs.dry_run import dry_run

        say(dry_run(cfg))
        return 0
    return train_one(cfg, quiet=quiet)


def train_one(cfg: Any, *, quiet: bool = False) -> int:
    """Train one configuration and print its numbers; the last line is the run's folder."""
    from dgmbench.command.headline import print_headline
    from dgmbench.runs.run import train

    outcome = train(cfg) if quiet else train(cfg, announce=lambda text: say(*text.split("\n")))
    print_headline(outcome.result, str(outcome.run))
    say(*outcome.remarks, f"{outcome.message}; {outcome.objective_text}", outcome.run)
    return 0
