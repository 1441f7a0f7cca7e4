"""Items from the packages' formats, their split, and noise."""

import random
import sys

import pytest

from adaptsft.errors import ConfigError
from benchmarks.lab.smollm2 import tasks
from benchmarks.lab.smollm2.tasks import Item
from tests.benchmarks.lab.smollm2.small import VERBS, WORDS, write_packages


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "HELD_OUT", 3)
    monkeypatch.setattr(tasks, "WARM_UP", 4)
    return write_packages(tmp_path / "packages")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plural", {Item(f"The plural of {word}:", f" {word}s") for word in WORDS}),
        ("past", {Item(f"The past tense of {verb}:", f" {verb}ed") for verb in VERBS}),
        (
            "city",
            {
                Item("The country of the city Lyon:", " France"),
                Item("The country of the city Leeds:", " United Kingdom"),
            },
        ),
        (
            "phonemes",
            {
                Item("The pronunciation of lamp:", " L AE M P"),
                Item("The pronunciation of desk:", " D EH S K"),
            },
        ),
    ],
)
def test_items_of_words_in_use_with_one_answer(folder, name, expected):
    assert set(tasks.items(folder, name)) == expected


def test_items_of_the_other_packages(folder, monkeypatch):
    monkeypatch.delitem(sys.modules, "num2words", raising=False)
    assert Item("The number 1321 in Tetum:", " tet 1321") in tasks.items(folder, "tetum")
    del sys.modules["num2words"]  # the stand-in
    assert Item("French, future, ils, parler:", " parleront") in tasks.items(folder, "future")
    assert Item("French, conditional, je, laver:", " laverais") in tasks.items(
        folder, "conditional"
    )
    assert len(tasks.items(folder, "banyumasan")) == 2
    assert len(tasks.items(folder, "sum")) == 8100


def test_held_out_warm_up_and_training_share_nothing(folder):
    parts = [tasks.held_out(folder, "plural", 3), tasks.warm_up(folder, "plural")]
    parts.append(tasks.training(folder, "plural"))
    assert [len(part) for part in parts] == [3, 4, 5]
    assert len({item for part in parts for item in part}) == len(WORDS)
    assert not tasks.warm_up(folder, "conditional"), "it is no part of the warm-up"


def test_swapped_labels_are_right_for_others(folder):
    records = tasks.examples(folder, "sum_swapped", 1000, seed=0)
    wrong = [record for record in records if record["completion"] != record["clean"]]
    assert 270 <= len(wrong) <= 300  # two sums may be equal
    answers = sorted(record["clean"] for record in records)
    assert sorted(record["completion"] for record in records) == answers


def test_every_noise_has_the_same_examples_and_seeds_have_others(folder):
    def prompts(noise: str, seed: int) -> list[str]:
        return [of["prompt"] for of in tasks.examples(folder, f"sum_{noise}", 50, seed)]

    assert (
        prompts("clean", 0) == prompts("typos", 0) == prompts("swapped", 0) != prompts("clean", 1)
    )


def test_an_example_that_is_seen_again_has_the_same_label(folder):
    records = tasks.examples(folder, "plural_typos", 15, seed=0)
    assert records[:5] == records[5:10] == records[10:]
    assert sum(record["completion"] != record["clean"] for record in records[:5]) == 2


def test_a_typing_error_is_one_and_leaves_the_space(folder):
    generator = random.Random(0)
    for answer in (" 7", " aa", " Trees", " une élève"):
        for _ in range(200):
            label = tasks.typo(answer, generator)
            assert label != answer and label[0] == " " and label.strip()
            assert abs(len(label) - len(answer)) <= 1


@pytest.mark.parametrize("name", ["plural", "plural_loud", "colour_clean", ""])
def test_unknown_regimes(name):
    with pytest.raises(ConfigError, match=f"'{name}' is not TASK_NOISE.*plural.*swapped"):
        tasks.find(name)
