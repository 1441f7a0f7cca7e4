"""Generated figlet items, and OpenBookQA's training labels with noise."""

from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("pyfiglet", reason="pyfiglet is not installed: pip install 'adaptsft[eval]'")

from adaptsft.config.schema import DataConfig
from adaptsft.data.layout import Layout
from adaptsft.errors import ConfigError, DataError
from adaptsft.evals import figfont, openbookqa
from adaptsft.evals.openbookqa import Noise
from adaptsft.evals.tasks import load_task


def pinned(split: str) -> list[dict]:
    return list(figfont.verified(figfont.items(split), figfont.SHA256[split]))


def test_the_items_of_the_test_are_the_pinned_ones() -> None:
    test = pinned("test")
    assert len(test) == 5_000
    assert test[7] == figfont.item(40_007)  # each by itself
    with pytest.raises(DataError, match="not 0000"):
        list(figfont.verified(test, "0000"))


@pytest.mark.nightly  # 45,000 items
def test_all_items_are_the_pinned_ones_and_few_of_the_test_are_in_training() -> None:
    train, test = pinned("train"), pinned("test")
    assert len(train) == 40_000
    seen = {(record["question"], record["answer"]) for record in train}
    assert sum((record["question"], record["answer"]) in seen for record in test) == 18
    words = {record["answer"] for record in train}
    assert sum(record["answer"] in words for record in test) / len(test) == pytest.approx(0.9294)


def test_items_can_be_read() -> None:
    """The drawing holds the word letter by letter, with the font's own drawings of them."""
    for index in (0, 1, 2, 40_000):
        record = figfont.item(index)
        assert (
            2 <= len(record["answer"]) <= 5
            and record["answer"].isalpha()
            and record["answer"].isupper()
        )
        drawing = figfont.figlet(record["font"]).renderText(" ".join(record["answer"]))
        assert record["question"].endswith(f"\n\n{drawing}")
        assert record["answer"].lower() in figfont.words()


@pytest.mark.parametrize(
    ("font", "expected"),
    [
        ("standard", True),
        ("slant", True),
        ("rot13", False),
        ("morse", False),
        ("ivrit", False),
        ("runic", False),
        ("stencil2", False),
    ],
)
def test_fonts_that_can_be_told_apart(font: str, expected: bool) -> None:
    assert figfont.legible(font) is expected
    assert (font in figfont.fonts()) is expected


def test_conversations_for_the_trainer() -> None:
    record = figfont.item(0)
    row = figfont.conversation(record, load_task("figfont").prompt)
    assert row["messages"][2] == {"role": "assistant", "content": record["answer"]}
    assert row["messages"][1]["content"] == record["question"] + "\n"
    assert row["messages"][0]["content"].startswith("You are an expert at decoding Figlet Font")
    conversation = Layout.of(row, DataConfig().fields).conversation(row)
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]
    assert conversation.weights == [1.0, 1.0, 1.0]


def questions(n: int) -> list[openbookqa.Question]:
    options = {letter: f"option {letter}" for letter in "ABCD"}
    return [
        {
            "id": str(i),
            "question": f"Question {i}",
            "listed": "A. …",
            "options": options,
            "gold": "ABCD"[i % 4],
        }
        for i in range(n)
    ]


@pytest.mark.parametrize("kind", ["uniform", "structured"])
def test_noise_has_its_rate_and_grows(kind: str) -> None:
    asked = questions(1000)
    taught = {
        rate: openbookqa.labels(asked, Noise(rate, kind, seed=3)) for rate in (0.0, 0.1, 0.3, 1.0)
    }
    wrong = {
        rate: {i for i in range(1000) if labels[i] != asked[i]["gold"]}
        for rate, labels in taught.items()
    }
    assert {rate: len(indices) for rate, indices in wrong.items()} == {
        0.0: 0,
        0.1: 100,
        0.3: 300,
        1.0: 1000,
    }
    assert wrong[0.1] < wrong[0.3]
    assert all(taught[0.1][i] == taught[0.3][i] for i in wrong[0.1])
    assert (
        taught[0.3]
        == openbookqa.labels(asked, Noise(0.3, kind, seed=3))
        != openbookqa.labels(asked, Noise(0.3, kind, seed=4))
    )


def test_kinds_of_noise() -> None:
    asked = questions(4000)
    pairs = Counter(
        zip(
            (question["gold"] for question in asked),
            openbookqa.labels(asked, Noise(1.0, "structured")),
            strict=True,
        )
    )
    assert pairs == {("A", "B"): 1000, ("B", "C"): 1000, ("C", "D"): 1000, ("D", "A"): 1000}
    pairs = Counter(
        zip(
            (question["gold"] for question in asked),
            openbookqa.labels(asked, Noise(1.0, "uniform")),
            strict=True,
        )
    )
    assert len(pairs) == 12
    # 5 standard deviations
    assert all(abs(count - 1000 / 3) < 80 for count in pairs.values())


def test_noise_that_cannot_be() -> None:
    for noise, message in (
        ((1.5, "uniform"), "--noise-rate 1.5"),
        ((0.1, "random"), "choose one of uniform, structured"),
    ):
        with pytest.raises(ConfigError, match=message):
            Noise(*noise)


def test_a_broken_tsv(tmp_path: Path) -> None:
    path = tmp_path / "train.tsv"
    path.write_text("ID\tQuestion Stem\tChoices\tAnswer Key\n1\tWhy?\t(A) so (B) thus\tC\n")
    with pytest.raises(
        DataError, match=r"train\.tsv, line 2: the answer 'C' is none of the options A, B"
    ):
        openbookqa.questions_of(openbookqa.tsv_records(path))
    path.write_text("ID\tChoices\n1\t(A) so\n")
    with pytest.raises(
        DataError, match="line 2: column 'Answer Key' is missing; the record has ID, Choices"
    ):
        openbookqa.questions_of(openbookqa.tsv_records(path))
