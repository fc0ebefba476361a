"""What every paper's method sends, quantised."""

import jax
import pytest
from tiny_methods import TINY

from fedjax_mm import trees, uploads
from fedjax_mm.uploads.attached import upload_shapes

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", ["creamfl", "fedmekt", "fedavg", "peft"])
def test_eight_bits_are_a_quarter_of_the_bytes_of_every_method(name):
    method, data = TINY[name]()
    for upload in upload_shapes(method, data).values():
        values = {slot: sent.value for slot, sent in upload.items()}
        packed = jax.eval_shape(lambda v, key: uploads.quantise(8).encode((), v, {}, key)[0], values, KEY)
        arrays = len(jax.tree.leaves(values))
        assert 4 * (trees.size_bytes(packed) - 4 * arrays) == trees.size_bytes(values) > 0
