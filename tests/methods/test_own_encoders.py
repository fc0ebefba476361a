"""Every `build` takes encoders and heads of any kind, and a frozen part neither trains nor travels."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from tiny_joint_space import CLIENTS, LINEAR, NUM_CLASSES, SERVER, problem

from fedjax_mm import costs, run
from fedjax_mm.data.federated import FederatedData
from fedjax_mm.methods import creamfl, encoder_averaging, fedavg
from fedjax_mm.models import as_encoder

X = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
DATA = FederatedData.from_arrays({"x": X, "label": np.arange(12) % 2}, np.arange(12) % 3)
PAIR = (LINEAR.init, LINEAR.apply)
TRUNK = {"layers_0": {"kernel": np.ones((3, 5), np.float32), "bias": np.zeros(5, np.float32)}}
OWN = {
    "pair": PAIR,
    "linen": nn.Dense(4),
    "nnx": nnx.Linear(3, 4, rngs=nnx.Rngs(0)),
    "nnx function": lambda rngs: nnx.Linear(3, 4, rngs=rngs),
}
HEADS = {"pair": PAIR, "linen": nn.Dense(2)}


def train(encoder, head, directory=None):
    method = fedavg.build(fedavg.FedAvgConfig(batch_size=2), DATA, {"x": encoder}, head)
    settings = {"rounds": 2, "per_round": 2, "directory": directory, "log": lambda line: None}
    return method, run.train(method, DATA, test={"x": X, "label": np.arange(12) % 2}, **settings)


@pytest.mark.parametrize("kind", OWN)
def test_own_encoders_train(kind):
    method, state = train(OWN[kind], HEADS.get(kind, nn.Dense(2)))
    first = method.init(jax.random.fold_in(jax.random.key(0), 0)).server["params"]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), first, state.server["params"])
    assert set(moved) == {"x", "head"} and all(jax.tree.leaves(moved))


def test_a_frozen_part_neither_trains_nor_travels_and_a_run_goes_on_with_it(tmp_path):
    net = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(4)])
    encoder = as_encoder(net, pretrained=TRUNK, frozen="layers_0")
    method, state = train(encoder, nn.Dense(2), tmp_path)
    assert list(state.server["params"]["x"]) == ["layers_2"]
    cost = costs.of(method, DATA.round({"all": np.arange(2)}))["all"]
    assert cost.bytes_down == cost.bytes_up == 4 * (5 * 4 + 4 + 4 * 2 + 2)
    saved = run.load(tmp_path).server["params"]["x"]
    np.testing.assert_array_equal(saved["layers_2"]["kernel"], state.server["params"]["x"]["layers_2"]["kernel"])
    other = as_encoder(net, pretrained=optax.tree.scale(2.0, TRUNK), frozen="layers_0")
    with pytest.raises(ValueError, match="holds another run: the program"):
        train(other, nn.Dense(2), tmp_path)


def test_all_may_be_frozen_so_that_the_head_alone_trains():
    encoder = as_encoder(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), frozen=True)
    method, state = train(encoder, nn.Dense(2))
    assert state.server["params"]["x"] == {} and state.server["params"]["head"]


def test_every_method_of_encoders_takes_them():
    own = {"image": nn.Dense(4), "text": PAIR}
    clients = {"image": {"image": PAIR}, "text": {"text": nn.Dense(4)}, "both": own}
    data = problem()
    for method in (
        creamfl.build(creamfl.CreamFLConfig(), data, own, clients, NUM_CLASSES),
        encoder_averaging.build(encoder_averaging.AveragingConfig(), data, own, NUM_CLASSES),
    ):
        state = jax.eval_shape(method.init, jax.random.key(0))
        params = state.server["params"]
        assert sorted(params["image"]) == ["bias", "kernel"] and sorted(params["text"]) == ["w"]


@pytest.mark.parametrize(
    "server, clients, said",
    [
        ({"image": 3, "text": PAIR}, CLIENTS, r"server\['image'\] is int 3; it must be a models\.Model"),
        (SERVER, {**CLIENTS, "text": {"text": (1, 2)}}, r"clients\['text'\]\['text'\] is tuple"),
        (SERVER, 3, "clients is 3; it must be a mapping"),
        (SERVER, {**CLIENTS, "text": {"text": nn.Dense(5)}}, "the encoders give .*text's text .B, 5.*with one D"),
    ],
)
def test_what_is_no_encoder_is_refused_by_its_name(server, clients, said):
    with pytest.raises(ValueError, match=said):
        creamfl.build(creamfl.CreamFLConfig(), problem(), server, clients, NUM_CLASSES)
