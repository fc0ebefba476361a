"""FedDAT compared with every other way of tuning one frozen vision-language trunk for clients with different questions.

python -m experiments.feddat                                     one run, --mode and --data
python -m experiments.feddat compare --data vqa --data-dir DIR   all modes, the same steps and rates
python -m experiments.feddat sweep --grid training.lr=.003,.01,.03 --seeds 8
python -m experiments.feddat costs --trunk albef                 what each mode trains and sends of a published trunk

On 2 shared CPU cores a round of scenes (6 clients of 25 steps, alone on the machine) takes 4.07 s with FedDAT and
2.58 s with one adapter. 12 rounds, 3 seeds, mean VQA score on four different tasks: FedDAT 47.3 ± 1.6, adapter
45.1 ± 1.2, each client alone 49.4 ± 2.2. docs/feddat.md has all 16 modes.
"""

from collections.abc import Sequence

from experiments.common import cli, sweeps
from experiments.feddat import costs, study, table
from experiments.feddat.modes import modes


def main(arguments: Sequence[str]) -> object:
    """Runs the command."""
    command, arguments = cli.command(arguments, ("compare", "costs", "sweep"))
    if command == "costs":
        return cli.call(costs.main, arguments)
    if command == "sweep":
        return sweeps.main(study.PRESETS, arguments, __doc__, lambda s: s.common, study.subject, study.SWEPT)
    settings = cli.parse(study.PRESETS, arguments, __doc__)
    for mode in (settings.mode, *settings.modes):
        cli.one_of("mode", mode, modes(settings.training))
    return table.compare(settings) if command == "compare" else table.single(settings)


if __name__ == "__main__":
    cli.run(main)
