"""Runs several at a time, in processes of their own."""

import functools
import os
import time

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


def test_an_error_of_a_process_ends_the_others_and_reaches_the_caller(tmp_path):
    train = functools.partial(wait_or_refuse, tmp_path)
    with pytest.raises(ValueError, match="--seed is -1; it must be at least 0") as told:
        jobs.trained(train, ("refused", "waits"), cli.Common(seed=0, jobs=2))
    assert cli.is_about_settings(told.value)
    assert (tmp_path / "begun").exists() and not (tmp_path / "done").exists()


def wait_or_refuse(folder, name, seed):
    """One run is under way as the other is refused."""
    if name == "refused":
        while not (folder / "begun").exists():
            time.sleep(0.01)
        cli.at_least(0, seed=-1)
    (folder / "begun").touch()
    time.sleep(30)  # it is ended before that
    (folder / "done").touch()
