"""FedDAT compared with every other way of tuning one frozen vision-language trunk for clients with different questions.

python -m experiments.feddat                                     one run, --mode and --data
python -m experiments.feddat compare --data vqa --data-dir DIR   all modes, the same steps and rates
python -m experiments.feddat tuned --data vqa --data-dir DIR --trunk runs/fusion --sizes 30 60 120
    compare after each mode has chosen its rate and strength on the split valid; and with fewer questions
python -m experiments.feddat compare --data vqa --preset paper --benchmark domain --data-dir DIR --trunk DIR --stream
    the paper's settings over a published trunk, for a GPU
python -m experiments.feddat sweep --grid training.lr=.003,.01,.03 --seeds 8
python -m experiments.feddat costs --trunk albef                 what each mode trains and sends of a published trunk

36 rounds over five clients with 240 questions each, through frozen encoders, take 4 to 6 CPU-seconds on 2 shared cores.
5 seeds, each mode tuned, mean VQA score: FedDAT 55.8 ± 0.7, adapter 54.2 ± 1.0, each client alone 55.6 ± 0.5.
docs/feddat.md has the tables.
"""

from collections.abc import Sequence

from experiments.common import cli, sweeps
from experiments.feddat import costs, study, table, tuned
from experiments.feddat.modes import modes


def main(arguments: Sequence[str]) -> object:
    """Runs the command."""
    command, arguments = cli.command(arguments, ("compare", "costs", "sweep", "tuned"))
    if command == "costs":
        return cli.call(costs.main, arguments)
    preset, arguments = cli.taken("--preset", arguments)
    presets = {None: study.PRESETS, "paper": study.PAPER}
    cli.one_of("--preset", preset or "paper", ("paper",))
    if command == "sweep":
        return sweeps.main(presets[preset], arguments, __doc__, lambda s: s.common, study.subject, study.SWEPT)
    settings = cli.parse(presets[preset], arguments, __doc__)
    for mode in (settings.mode, *settings.modes):
        cli.one_of("mode", mode, modes(settings.training))
    return {"compare": table.compare, "tuned": tuned.compare, "": table.single}[command](settings)


if __name__ == "__main__":
    cli.run(main)
