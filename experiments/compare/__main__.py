"""Every paper beside its own controls on embedded data, in one table and one picture.

    python -m experiments.compare --jobs 2

The data are handwritten digits, whose left and right halves are two modalities. All papers have the same split and as
many rounds. Scenes, which have pictures, captions and questions, would take too long for a first command: 12 rounds of
FedDAT alone take 49 s a seed there, after minutes of pretraining (experiments.feddat).

With --jobs 2 and cold caches it takes 100 CPU seconds; it took 126 s on 2 CPU cores that other work shared. Test scores
in percent, beside the best control: FedAvg 93.5 (clients alone 30.5), LW-FedMML 84.9 (end-to-end 90.2), CreamFL 18.2
(server only 17.4), FedDAT 83.9 (FedAvg of one adapter 83.6), FedMEKT 87.8 (server only 87.4).

It makes docs/compare.png.
"""

from collections.abc import Sequence

from experiments.common import cli
from experiments.compare import study, table


def main(arguments: Sequence[str]) -> None:
    """Runs the command."""
    table.compare(cli.parse(study.Settings(), arguments, __doc__))


if __name__ == "__main__":
    cli.compile_fast()
    cli.run(main)
