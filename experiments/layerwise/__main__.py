"""Layer-wise and progressive training of two encoders compared with end-to-end training (LW-FedMML, Prog-FedMML).

python -m experiments.layerwise                                         one run, --plan and --data
python -m experiments.layerwise compare --data flickr8k --data-dir DIR  the three plans at equal rounds
python -m experiments.layerwise --data coco --data-dir DIR --checkpoints DIR --schedule 90_lh10
    the paper's encoders, rates and schedule, for a GPU; also --data advance and flickr8k
python -m experiments.layerwise tuned --data flickr8k --data-dir DIR    pretrained encoders, beside a frozen trunk
python -m experiments.layerwise swings --data av_digits --data-dir DIR  scores with both kinds of statistics
python -m experiments.layerwise sweep --grid encoder_lr=.004,.016 head_lr=.004,.016 --seeds 8
python -m experiments.layerwise costs                                   bytes, FLOPs, memory of the full-size models

On 2 shared CPU cores a round of scenes takes 6.94 s end to end, 2.57 s layer-wise and 4.37 s progressively. 60 rounds,
5 seeds, statistics of the averaged model: R@10 from image to text 29.2 ± 2.6, 22.9 ± 1.0 and 29.0 ± 0.8 %, chance 1.00;
a client that takes part in every round sends and gets 251, 148 and 203 MB. docs/layerwise.md has all tables.
"""

from collections.abc import Sequence

from experiments.common import cli, sweeps
from experiments.layerwise import costs, pretrained, study, swings, table, tuned


def main(arguments: Sequence[str]) -> object:
    """Runs the command."""
    command, arguments = cli.command(arguments, ("compare", "costs", "sweep", "swings", "tuned"))
    presets = study.PAPER if cli.given("--checkpoints", arguments) else study.PRESETS
    if command == "costs":
        return cli.call(costs.main, arguments)
    if command == "sweep":
        return sweeps.main(presets, arguments, __doc__, lambda s: s.common, study.subject, study.SWEPT)
    if command == "tuned":
        return tuned.compare(cli.parse(pretrained.PRESETS, arguments, __doc__))
    settings = cli.parse(presets, arguments, __doc__)
    if cli.given("--schedule", arguments) and cli.given("--rounds", arguments):
        raise ValueError("--rounds says nothing beside --schedule, which has the rounds of every stage; leave one out")
    return {"compare": table.compare, "swings": swings.compare, "": table.single}[command](settings)


if __name__ == "__main__":
    cli.run(main)
