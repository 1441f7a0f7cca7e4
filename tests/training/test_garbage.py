"""train.gc_every: Python collects when the loop says so, and afterwards as it likes."""

import gc
import weakref

import pytest

from adaptsft.errors import ConfigError
from adaptsft.train import train
from adaptsft.training.garbage import GarbageCollection
from tests.runs import metrics_of, small_config


class Node:
    """Two of them that hold each other are garbage that only a collection finds."""


def pair() -> weakref.ref:
    first, second = Node(), Node()
    first.other, second.other = second, first
    return weakref.ref(first)


def test_garbage_stays_until_the_step_that_collects():
    with GarbageCollection(3) as garbage:
        garbage.before(0)
        lost = pair()
        before = sum(generation["collections"] for generation in gc.get_stats())
        kept = [[] for _ in range(100_000)]  # Python would have collected long since
        assert sum(generation["collections"] for generation in gc.get_stats()) == before
        for step in (1, 2):
            garbage.before(step)
        assert lost() is not None and len(kept) == 100_000
        garbage.before(3)
        assert lost() is None
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_0_leaves_it_to_python():
    with GarbageCollection(0) as garbage:
        lost = pair()
        garbage.before(0)
        assert lost() is not None and gc.isenabled() and gc.get_freeze_count() == 0


def test_a_run_is_the_same_and_python_has_its_way_again(tmp_path, tiny_model):
    model, collections = tiny_model("llama", tied=False), []
    runs = {
        every: small_config(tmp_path, model, f"run{every}", train__gc_every=every)
        for every in (0, 4)
    }
    train(runs[0])
    gc.callbacks.append(watch := lambda phase, _: collections.append(gc.isenabled()))
    try:
        train(runs[4])
    finally:
        gc.callbacks.remove(watch)
    assert gc.isenabled()
    # a start and a stop each: before the loop, and before the steps 1 and 5
    assert collections.count(False) == 4
    assert metrics_of(runs[0]) == metrics_of(runs[4])


def test_a_negative_period_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.gc_every=-1: must not be negative"):
        small_config(tmp_path, tmp_path, train__gc_every=-1)
