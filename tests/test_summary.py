"""A FedState prints as a summary, whatever its leaves are."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_mm import FedState

STATE = FedState({"params": {"w": jnp.ones((4, 3))}}, {"a": {"m": jnp.zeros((5, 2)), "n": jnp.zeros(5)}, "b": ()}, 1)


def test_a_state_prints_its_parts_and_none_of_its_numbers():
    lines = repr(STATE).splitlines()
    assert lines == [
        "FedState after 1 round",
        "  server/params  1 array, 12 values, 48 bytes",
        "  clients/a      5 clients, each 2 arrays, 3 values, 12 bytes",
        "  clients/b      nothing",
    ]
    assert str(STATE) == repr(STATE)


def test_printing_never_fails():
    shapes = jax.eval_shape(lambda state: state, STATE)
    assert repr(shapes).splitlines()[1:] == repr(STATE).splitlines()[1:]
    seen = []
    jax.jit(lambda state: seen.append(repr(state)) or state)(STATE)
    assert "5 clients" in seen[0]
    given_away = jnp.int32(3)
    given_away.delete()
    for odd in (FedState(None, None, None), FedState(3.0, {"a": "text"}, given_away)):
        assert repr(odd).startswith("FedState\n")
    assert repr(FedState({"key": jax.random.key(0), "half": np.zeros(2, jnp.bfloat16)}, {}, 0)).count("1 array") == 2
    many = FedState({"w": jax.ShapeDtypeStruct((30_000_000,), "float32")}, {"a": np.zeros((2, 2)), "b": np.zeros(2)}, 0)
    assert "30,000,000 values, 120.0 MB" in repr(many)
