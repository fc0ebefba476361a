"""Every maker of a model refuses sizes, rates and types that are none, naming the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_mm.models import (
    adapters,
    ast,
    autoencoder,
    bert,
    cnn,
    efficientnet,
    embedding,
    heads,
    lstm,
    mlp,
    resnet,
    text,
    vilt,
    vit,
    whisper,
)

KEY, TRUNK = jax.random.key(0), cnn.trunk([4])
SMALL = dict(dim=6, depth=1, heads=2, mlp=8)
MAKERS = [  # a maker, a call that works, and the arguments that are sizes
    (mlp.encoder, dict(widths=(4,), dim=3, dtype="float32"), "widths dim dtype"),
    (mlp.classifier, dict(widths=(4,), num_classes=3), "widths num_classes"),
    (cnn.encoder, dict(channels=(4,), dim=3), "channels dim pool norm"),
    (lstm.encoder, dict(hidden=4, dim=3), "hidden dim layers pool dtype"),
    (text.encoder, dict(vocabulary_size=5, dim=4, width=4), "vocabulary_size dim width kind"),
    (heads.linear, dict(num_classes=3), "num_classes dtype"),
    (heads.mlp, dict(widths=(3,), num_classes=3), "widths num_classes"),
    (heads.projection, dict(), "hidden dim layers rate"),
    (heads.prediction, dict(num_classes=3), "num_classes hidden rate fusion"),
    (vit.encoder, dict(image=8, patch=4, **SMALL), "image patch dim depth heads mlp std pooler dtype"),
    (bert.encoder, dict(vocabulary=9, **SMALL), "vocabulary positions types depth heads std pool dropout"),
    (ast.encoder, dict(mels=8, frames=10, patch=4, stride=2, **SMALL), "mels frames patch stride depth std"),
    (whisper.encoder, dict(mels=8, positions=6, **SMALL), "mels positions dim depth heads mlp dtype"),
    (vilt.encoder, dict(image=4, patch=2, **SMALL), "image patch vocabulary text_length depth std lora_alpha"),
    (resnet.encoder, dict(depths=(1,), widths=(4,)), "depths widths image block norm stem"),
    (efficientnet.encoder, dict(stages=((3, 1, 4, 1, 1),), stem=4, head=8), "stages stem head image dtype"),
    (embedding.pie_text, dict(vocabulary=9, dim=4), "vocabulary dim width scale relu backward"),
    (embedding.pie_image, dict(trunk=TRUNK, dim=4), "trunk dim"),
    (embedding.mean_image, dict(trunk=TRUNK, dim=4), "trunk dim scale"),
    (embedding.linear, dict(trunk=TRUNK, dim=4), "trunk dim"),
    (autoencoder.split_lstm, dict(features={"a": 3}), "features hidden width readout"),
    (autoencoder.linear, dict(features={"a": 3}), "features width"),
    (adapters.adapter, dict(key=KEY, depth=1, dim=4), "depth dim hidden"),
    (adapters.lora, dict(key=KEY, depth=1, dim=4), "depth dim rank"),
    (adapters.prompt, dict(key=KEY, dim=4), "dim length hidden"),
    (adapters.answers, dict(num_answers=3), "num_answers dtype"),
]
WRONG = ("x", -1, float("nan"), object(), ["a"], {"a": 0.5})


@pytest.mark.parametrize("maker, call, names", MAKERS, ids=lambda x: getattr(x, "__module__", "")[17:])
def test_a_wrong_argument_is_refused_by_its_name(maker, call, names):
    maker(**call)
    for name in names.split():
        for value in WRONG:
            with pytest.raises(ValueError, match=rf"^{name}\b"):
                maker(**{**call, name: value})


FLAGS = [
    (vit.encoder, "pooler", dict(image=8, patch=4, **SMALL), (jnp.zeros((1, 8, 8, 3)),)),
    (bert.encoder, "pooler", dict(vocabulary=9, types=2, **SMALL), (jnp.zeros((1, 4), int),)),
    (embedding.pie_text, "relu", dict(vocabulary=9, dim=4), (jnp.zeros((1, 4), int),)),
    (autoencoder.split_lstm, "readout", dict(features={"a": 3}), ()),
]


@pytest.mark.parametrize("flag", [True, False])
@pytest.mark.parametrize("maker, name, call, example", FLAGS, ids=lambda x: getattr(x, "__module__", "")[17:])
def test_a_flag_of_numpy_is_the_one_that_it_holds(maker, name, call, example, flag):
    shapes = lambda value: jax.eval_shape(maker(**call, **{name: value}).init, KEY, *example)
    assert shapes(np.bool_(flag)) == shapes(flag)


def test_models_of_texts_say_how_many_ids_they_know():
    knows = [text.encoder(5, 4, 4), embedding.pie_text(5, 4), bert.encoder(vocabulary=5, **SMALL)]
    knows += [vilt.encoder(image=4, patch=2, vocabulary=5, **SMALL), embedding.linear(text.encoder(5, 4, 4), 3)]
    assert [model.vocabulary for model in knows] == [5] * len(knows)
    assert mlp.encoder((), 4).vocabulary is None
