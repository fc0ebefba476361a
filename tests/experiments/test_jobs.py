"""Runs several at a time, in processes of their own."""

import os

import pytest

from experiments.common import cli, jobs


def place(name, seed):
    if seed < 0:
        cli.at_least(0, seed=seed)
    return name, seed, os.getpid()


def divide(name, seed):
    return 1 / seed


def test_every_run_is_trained_once_in_a_process_of_its_own_or_in_this_one():
    names, here = ("a", "b"), os.getpid()
    for number in (1, 2):
        done = jobs.trained(place, names, cli.Common(seeds=2, jobs=number))
        assert {name: [one[:2] for one in same] for name, same in done.items()} == {
            name: [(name, 0), (name, 1)] for name in names
        }
        assert all((one[2] == here) == (number == 1) for same in done.values() for one in same)


def test_an_error_about_settings_is_told_as_one_and_a_fault_stays_a_fault():
    told = jobs._outcome(place, ("a", -1))
    assert isinstance(told, ValueError) and str(told) == "--seed is -1; it must be at least 0"
    with pytest.raises(ZeroDivisionError):
        jobs._outcome(divide, ("a", 0))
