"""``dgm bench``: run a suite."""

from dgmbench.command.parser import CONFIG_DIR, Parser, choices, parse


def run(rest: list[str]) -> int:
    """Run ``dgm bench`` with these words and return the exit code."""
    parser = Parser(
        "bench",
        "Run every cell of a suite, skip what is done, compare with published numbers and write a report, whose path\n"
        "is the last line printed. The same command again goes on where it stopped.",
        choices("suite", "executor")
        + """

some settings:
  executor.slots=4         executor.time=3600s     executor.memory=4GiB     paths.outputs=DIR
  model=vae,made           only these of the suite's models
  seed=0,1,2               in place of the suite's seeds
  KEY=VALUE                any setting of 'dgm train', for every cell

examples:
  dgm bench suite=demo
  dgm bench suite=table2 --dry-run
  dgm bench suite=demo --retry failed
  dgm bench suite=table3 executor=slurm executor.partition=gpu executor.gpus=1
""",
        "suite=NAME [--dry-run] [--retry failed|oom|timeout|all] [--stale] [key=value ...]",
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR", help=CONFIG_DIR)
    parser.add_argument("--dry-run", action="store_true", help="list the cells and estimate the time, run nothing")
    parser.add_argument("--retry", metavar="STATUS", help="run cells again that ended so: failed, oom, timeout or all")
    parser.add_argument("--stale", action="store_true", help="run cells again whose model's source has changed")
    arguments = parse(parser, rest)
    from dgmbench.bench.runner import bench

    return bench(
        arguments.overrides,
        config_dirs=arguments.config_dir,
        dry_run=arguments.dry_run,
        retry=arguments.retry,
        stale=arguments.stale,
    )
