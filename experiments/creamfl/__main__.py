"""CreamFL compared with its baselines, its ablations, and the server alone.

python -m experiments.creamfl                                          one run, --method and --data
python -m experiments.creamfl compare --data flickr8k --data-dir DIR   all of them, at equal server steps
python -m experiments.creamfl tuned --data flickr8k --data-dir DIR --encoders frozen --jobs 2
    compare after each row has chosen its rates on the split valid
python -m experiments.creamfl teachers --data flickr8k --data-dir DIR --encoders frozen
    what CreamFL's server gains from clients with more and with fewer examples
python -m experiments.creamfl --data coco --data-dir DIR --checkpoints DIR --preset paper
    the paper's models, data and settings, for a GPU; --preset code has those of the released code
python -m experiments.creamfl sweep --grid server_lr=.001,.003 client_lr=.001,.003 --seeds 8

On 2 shared CPU cores a round of CreamFL takes 6.1 s on scenes (1.6 to 3.1 s for the baselines). 12 rounds, 5 seeds,
rows tuned, sum of six recalls: server only 139 ± 4, CreamFL 148 ± 11, chance 6.4. docs/creamfl.md has the tables.
"""

from collections.abc import Sequence

from experiments.common import cli, sweeps
from experiments.creamfl import study, table, teachers, tuned

RENAMED = {"small": "ours", "code": "released"}


def main(arguments: Sequence[str]) -> object:
    """Runs the command."""
    command, arguments = cli.command(arguments, ("compare", "tuned", "teachers", "sweep"))
    arguments = _renamed(arguments)
    of_the_code = any(argument.rpartition("=")[2] == "released" for argument in arguments)
    presets = study.CODE if of_the_code else study.PRESETS
    if command == "sweep":
        return sweeps.main(presets, arguments, __doc__, lambda s: s.common, study.subject, study.SWEPT)
    settings = cli.parse(presets, arguments, __doc__)
    cli.one_of("--method", settings.method, study.variants(settings))
    study.named(settings)
    commands = {"compare": table.compare, "tuned": tuned.compare, "teachers": teachers.compare, "": table.single}
    return commands[command](settings)


def _renamed(arguments: Sequence[str]) -> list[str]:
    """The arguments with --variant and today's name of a variant in place of --preset and its former names."""
    given = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in ("--preset", "--variant") and equals:
            argument = f"{flag}={RENAMED.get(value, value)}"
        elif given and given[-1] in ("--preset", "--variant"):
            argument = RENAMED.get(argument, argument)
        given.append(argument)
    return given


if __name__ == "__main__":
    cli.run(main)
