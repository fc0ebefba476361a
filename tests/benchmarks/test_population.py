"""The script of populations: a row for each, and bytes on the device that grow only where all states are on it."""

import dataclasses
import gc

import pytest

from benchmarks import population
from benchmarks.population import Settings

TINY = Settings(populations=(3, 40), per_round=2, pool=20, examples=4, features=6, width=30, batch_size=2, rounds=2)
STATE_MB = 4 * (30 * 10 + 10) / 1e6  # a client's head


@pytest.fixture
def in_this_process(monkeypatch):
    gc.collect()  # what other tests left behind would be counted until then
    monkeypatch.setattr(population, "in_own_process", lambda section, settings, devices: section(settings))


def test_states_off_the_device_take_room_there_for_participants_alone(in_this_process, tmp_path):
    found = population.population(dataclasses.replace(TINY, folder=str(tmp_path)))
    rows = {(row["clients"], row["client states"]): row for row in found}
    assert list(rows) == [(n, place) for n in (3, 40) for place in ("device", "host", "disk")]
    for (clients, _), row in rows.items():
        assert row["states MB"] == pytest.approx(clients * STATE_MB)
        assert row["CPU ms"] > 0 and row["ms"] > 0 and row["peak RSS MB"] > 0
    grown = {place: rows[40, place]["device MB"] - rows[3, place]["device MB"] for place in ("device", "host", "disk")}
    assert grown["device"] == pytest.approx(37 * STATE_MB, rel=0.05)
    assert abs(grown["host"]) < STATE_MB and abs(grown["disk"]) < STATE_MB


def test_places_that_give_other_weights_are_an_error(monkeypatch, tmp_path):
    other = lambda section, settings, devices: [{"clients": 3, "checksum": settings.client_states}]
    monkeypatch.setattr(population, "in_own_process", other)
    with pytest.raises(ArithmeticError, match="3 clients do not end with the same weights"):
        population.population(dataclasses.replace(TINY, folder=str(tmp_path)))
