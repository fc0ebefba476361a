"""CreamFL: clients with different models and modalities teach a larger server through representations of public pairs.

Yu, Liu, Wang, Xu, Liu, ICLR 2023 (arXiv 2302.08888), after the paper's equations and the authors' released code.
Section numbers refer to docs/specs/creamfl.md.

    m, m'    a modality and the other one       (i_k, t_k)  pair k of the P public pairs, which everyone has
    G_m      the server's representations       z_m         a client's representations; both are of all public examples
    z_m^old  what the client sent last          tau         temperature

All representations have length 1. One round (section 1.3), each step a function of its own:
  1. `train_server`: the server trains on the public pairs (soft contrastive loss, section 1.4) and represents them all.
  2. `download`: it sends the representations, G_image and G_text, to every client.
  3. `train_client`: a client trains E epochs on its own examples, to classify or to retrieve (section 1.4), and on
     public examples, with gamma times the sum of two `contrasts` (section 1.5):
       inter_m = -log softmax_j(z_m,k . G_m',j / tau) at j = k                          the item's own pair among all P
       intra_m = -log e^(z_m.G_m / tau) / (e^(z_m.G_m / tau) + e^(z_m.z_m^old / tau))   towards the server
     Either a step has both losses (paper), or a pass with one follows a pass with the other (released code).
  4. `client_update`: steps 2 to 4 at one client. It sends z_m of all public examples, for its modalities.
  5. `weigh`, `average`: the server averages them item by item. The weights are the softmax over clients of
     log-softmax_j(z_m,k . G_m',j) at j = k (section 2), or those of a baseline: FedMD, FedET, FedGEMS, "reamFL" with
     Avg or IoT (section 4).
  6. `distil`: on the public pairs, the server's encoders learn to give these averages (section 2). An encoder whose
     modality nobody sent stays as it was.

Where paper and released code differ (section 7.3), each choice is a setting, and VARIANTS has both. No defect of the
released code is kept (section 7.2). Control: with kd_epochs = 0 nothing is exchanged, so that the server learns from
the public pairs alone and each client from its own examples alone.

Deviations from the original:
  - Optimiser: Adam in place of AdamP. The schedules of RELEASED are for 30 rounds, however many rounds are run.
  - Encoders: batch norm uses the checkpoint's statistics, and BERT has no dropout, also in training; the original
    trains with batch statistics and dropout 0.1.
  - Views (views.py): without `public_views`, `Training.flip` and `Training.alone`, which the variants "paper" and
    "released" have, contrasts and distillation see whole images, nothing is mirrored, and CIFAR-100's images are
    cropped as all others. Nothing is erased and no word is dropped. Crops are cut from the square that is stored: in
    experiments a photograph squashed, or at full size its middle, whose aspect is kept. CIFAR-100's images have the
    side of all others, not 256, and are turned bilinearly. What is sent is of whole images (the released code sends
    augmented ones, 7.2).
  - Classifiers (`Training.nonnegative`, `orthogonality`): class vectors are cut at 0 after each step alone; the
    original also cuts them before the first forward pass, and gives entries at 0 no gradient.
  - Joint steps are as many as the client's own batches. In the variant "paper", a client with one modality and 500
    examples then sees 0.013 of 50,000 public pairs per participation; the released code passes over all of them five
    times. Only in a joint step is the task loss of a client with both modalities divided by its batch; otherwise it is
    a sum over pairs, as released.
  - gamma also multiplies a contrast that stands alone; in the released code it is then 1.
  - Where participants are drawn from all clients at once, every cohort has places for all of them: 10 participants of
    three cohorts keep up to 30 places, three times the memory and the weighing of representations.
  - The variant "ours" clips no gradient; the released code clips the server's at length 2 in step 1 and step 6, which
    share one optimiser state (here too).
In the variant "paper", as in the paper, the denominator of inter has all P items, and that of the server's weights the
P - 1 others (`exclude_match`).
"""

import functools
from collections.abc import Mapping

from jax.sharding import Mesh

from fedjax_mm.checks import population_of
from fedjax_mm.federate import Evaluation, Method, federate
from fedjax_mm.methods.creamfl import fitting
from fedjax_mm.methods.creamfl.client import client_update, init_client, score_client
from fedjax_mm.methods.creamfl.config import CreamFLConfig
from fedjax_mm.methods.creamfl.joint_space_scores import scores
from fedjax_mm.methods.creamfl.server import download, init_server, server_update, train_server
from fedjax_mm.methods.creamfl.training import Encoders
from fedjax_mm.methods.fit import check_mapping, check_population
from fedjax_mm.methods.settings import check_settings
from fedjax_mm.models import as_encoders
from fedjax_mm.types import Cohort, HasPopulation, Server


def build(
    config: CreamFLConfig,
    data: HasPopulation,
    server: Encoders,
    clients: Mapping[str, Encoders],
    num_classes: Mapping[str, int],
    mesh: Mesh | None = None,
) -> Method:
    """The method for the cohorts of `data`, a FederatedData or a Population, whose public arrays are `image` [P, ...]
    and `text` [P, L].

    server, clients[cohort]: encoders of the modalities that the server (both) and the clients hold, into one width D:
        Models, or whatever models.as_encoder makes one of, which also starts them from pretrained parameters.
    num_classes: {cohort: K} of the cohorts that have one modality, and an array `label`.
    mesh: spreads the weighing of public examples over its devices.

    `evaluate` gives the server's retrieval and the clients' own scores (see `scores`). Raises ValueError where a
    setting is out of range, and where the data and the models do not fit each other; `evaluate` does for test arrays.
    """
    population = population_of(data)
    check_settings(config, CreamFLConfig)
    server = as_encoders("server", server)
    check_mapping("clients", clients)
    clients = {name: as_encoders(f"clients[{name!r}]", own) for name, own in clients.items()}
    fit = fitting.fit_of(population, server, clients, num_classes, one_width=config.exchanges)
    check_population(fit, population)
    public, cohorts = population.public or {}, {}
    for name, members in population.cohorts.items():
        own = clients[name]
        cohorts[name] = Cohort(
            members.size,
            functools.partial(init_client, config, own, members.arrays, public, num_classes.get(name)),
            functools.partial(client_update, config, own),
            functools.partial(score_client, config, own),
        )
    at_server = Server(
        functools.partial(init_server, config, server, public),
        functools.partial(download, config, tuple(cohorts)),
        functools.partial(server_update, config, server, mesh=mesh),
        functools.partial(train_server, config, server),
    )
    classes = {name: x.classes for name, x in population.cohorts.items() if x.classes is not None}
    score_all = functools.partial(scores, config.training, server, clients, classes)
    check_test = functools.partial(fitting.check_test, server, clients, num_classes, fit)
    evaluate = Evaluation(check_test, score_all)
    check = functools.partial(check_population, fit)
    return federate(at_server, cohorts, evaluate, public_by_rows=True, check=check)
