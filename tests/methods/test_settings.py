"""Every setting of every method is refused by name where its type or its range is wrong."""

import dataclasses

import numpy as np
import pytest

from fedjax_mm.checks import check_whole
from fedjax_mm.methods import (
    carmfl,
    creamfl,
    ditto,
    fedavg,
    fedclip,
    feddat,
    feddm,
    feddyn,
    fedet,
    fedftg,
    fedmekt,
    fedmsplit,
    fedproto,
    fedrep,
    fesem,
    flexmod,
    hafedformer,
    ifca,
    layerwise,
    mfedmc,
    pfedme,
    promptfl,
    splitmix,
)
from fedjax_mm.methods.creamfl.encoder_averaging import AveragingConfig
from fedjax_mm.methods.creamfl.vqa_evaluation import VQAProbe
from fedjax_mm.methods.feddat.config import PEFTConfig
from fedjax_mm.methods.feddat.vqa_tuning import Training
from fedjax_mm.methods.fedmekt.mmfl import MMFLConfig
from fedjax_mm.methods.settings import check_settings

KINDS = [
    *(fedavg.FedAvgConfig, fedmekt.FedMEKTConfig, fedmekt.Probe, MMFLConfig, creamfl.CreamFLConfig, creamfl.Training),
    *(AveragingConfig, VQAProbe, layerwise.LayerwiseConfig, feddat.FedDATConfig, PEFTConfig, Training),
    *(feddyn.FedDynConfig, ditto.DittoConfig, fedrep.FedRepConfig, pfedme.PFedMeConfig, ifca.IFCAConfig),
    *(fedproto.FedProtoConfig, fedclip.FedCLIPConfig, carmfl.CARMFLConfig, mfedmc.MFedMCConfig, fesem.FeSEMConfig),
    *(fedmsplit.FedMSplitConfig, flexmod.FlexModConfig, hafedformer.HAFedformerConfig),
    splitmix.SplitMixConfig,
    feddm.FedDMConfig,
    promptfl.PromptFLConfig,
    fedftg.FedFTGConfig,
    fedet.FedETConfig,
]
WRONG = (float("nan"), float("inf"), -1, "sdg", object(), [2.5j], {"a": "b"})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.__module__.split('.')[2]}.{kind.__name__}")
def test_every_field_refuses_what_is_none_of_its_values_and_names_itself(kind):
    check_settings(kind(), kind)
    for field in dataclasses.fields(kind):
        for value in WRONG:
            with pytest.raises(ValueError, match=rf"^{kind.__name__}\.{field.name} is "):
                check_settings(dataclasses.replace(kind(), **{field.name: value}), kind)


@pytest.mark.parametrize("variants", [fedmekt.VARIANTS, creamfl.VARIANTS, layerwise.VARIANTS, feddat.VARIANTS])
def test_every_named_variant_is_valid(variants):
    for config in variants.values():
        check_settings(config, type(config))


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("batch_size", 0, "an integer of at least 1"),
        ("batch_size", 20.0, "an integer of at least 1"),
        ("batch_size", True, "an integer of at least 1"),
        ("client_lr", True, "a finite number of at least 0"),
        ("client_lr", 10**400 * -1, "a finite number of at least 0"),
        ("server_optimizer", "sdg", "one of 'sgd', 'momentum', 'adam', 'yogi'"),
        ("shared", "head", "a tuple, each entry a text or None"),
    ],
)
def test_a_wrong_value_is_answered_with_the_right_ones(field, value, said):
    with pytest.raises(ValueError, match=f"it must be {said}$"):
        check_settings(fedavg.FedAvgConfig(**{field: value}), fedavg.FedAvgConfig)


def test_numbers_of_numpy_lists_and_zeros_that_mean_something_are_taken():
    config = fedavg.FedAvgConfig(client_lr=np.float32(0.1), batch_size=np.int64(3), epochs=0, prox=0, shared=["head"])
    check_settings(config, fedavg.FedAvgConfig)
    check_settings(fedmekt.Probe(own=np.bool_(True)), fedmekt.Probe)  # pyright: ignore[reportArgumentType]
    check_whole("num_classes", np.int32(2), least=1)


def test_another_methods_settings_are_refused():
    with pytest.raises(ValueError, match="it must be a FedAvgConfig"):
        check_settings(MMFLConfig(), fedavg.FedAvgConfig)
    with pytest.raises(ValueError, match="AveragingConfig.training is .*; it must be a Training"):
        check_settings(AveragingConfig(training=Training()), AveragingConfig)
    with pytest.raises(ValueError, match=r"Training\.clip is 0\.0; it must be a finite number above 0 or None"):
        check_settings(AveragingConfig(training=creamfl.Training(clip=0.0)), AveragingConfig)
