"""Tasks are what their roles say; questions are held out, and labels as wrong as asked."""

import json
import random
from collections import Counter
from itertools import islice

import pytest

from benchmarks.lab import families, tasks
from benchmarks.lab.regimes import NOISY, STRUCTURED
from benchmarks.lab.tasks import Noise

FAMILIES = {name: families.find(name) for name in ("letters", "digits", "facts")}

each_family = pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda family: family.name)


def some_questions(family: tasks.Family, count: int = 200, zipf: bool = False) -> list[str]:
    return list(islice(tasks.questions(family, zipf, False, "test"), count))


def answers(family: str, role: str, question: str) -> str:
    return "".join(FAMILIES[family].role(role).answer(question))


def test_answers():
    assert [answers("letters", role, "zebra") for role in ("strong", "middle")] == [
        "ZEBRA",
        "ARBEZ",
    ]
    assert [answers("digits", role, "012345") for role in ("strong", "middle", "weak")] == [
        "987654",
        "876549",
        "ALCNEP",
    ]
    larger, rotated = FAMILIES["digits"].pretrained[3], FAMILIES["digits"].pretrained[2]
    assert (larger.answer("190284"), rotated.answer("190284")) == ("992884", "902841")
    facts = FAMILIES["facts"]
    first, second, third = (question[:2] for question in some_questions(facts, 3))
    assert (
        answers("facts", "strong", first + second + third)[2:4]
        == answers("facts", "strong", second * 3)[:2]
    )
    origin, trade = facts.pretrained[:2]
    assert (
        answers("facts", "middle", first * 3)
        == origin.answer(first * 3)[:2] + trade.answer(first * 3)[:2] + origin.answer(first * 3)[:2]
    )


@each_family
def test_roles_are_what_they_say(family):
    asked = some_questions(family)
    known = {task.tag: task for task in family.pretrained}
    written = {
        c
        for task in family.pretrained
        for question in asked
        for c in "".join(task.answer(question))
    }
    assert family.strong in family.pretrained
    assert family.middle.tag not in known and all(
        tag + ">" in known for tag in family.middle.tag.split(">") if tag
    )
    assert family.weak.tag not in known and not written & set(family.weak.alphabet)
    before, after = (
        ["".join(task.answer(q)) for q in asked]
        for task in (known[family.redefined.tag], family.redefined)
    )
    agree = sum(
        a == b for x, y in zip(before, after, strict=True) for a, b in zip(x, y, strict=True)
    ) / sum(map(len, before))
    assert agree < 0.25, "the model is confidently wrong"
    assert set("".join(after)) <= written, "in symbols that it writes"
    assert any(len(choices) > 1 for choices in family.open.answer(asked[0]))
    tokenizer = tasks.tokenizer(family)
    for task in (*family.pretrained, family.middle, family.weak, family.redefined, family.open):
        assert task.tag + asked[0] + "=" == tokenizer.decode(
            tokenizer(tasks.prompt(task, asked[0])).input_ids
        )
        for question in asked:
            assert set("".join(task.answer(question))) <= set(task.alphabet)


@each_family
def test_questions_are_held_out_and_zipf_is_skewed(family):
    trained, held = (
        {*islice(tasks.questions(family, False, side, "x"), 500)} for side in (False, True)
    )
    assert not trained & held
    beginnings = {
        zipf: Counter(question[:2] for question in some_questions(family, 500, zipf))
        for zipf in (False, True)
    }
    assert max(beginnings[True].values()) > 2 * max(beginnings[False].values())


@pytest.mark.parametrize("noise", [NOISY, STRUCTURED], ids=lambda noise: noise.kind)
@each_family
def test_labels_are_wrong_as_often_as_asked_and_systematically_where_asked(family, noise, tmp_path):
    task = family.strong
    files = [
        tasks.write_examples(tmp_path / f"{n}", family, [(task, noise)], 2000, False, seed)
        for n, seed in enumerate("aab")
    ]
    assert files[0].read_text() == files[1].read_text() != files[2].read_text()
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    pairs = [(a, b) for row in rows for a, b in zip(row["completion"], row["clean"], strict=True)]
    wrong = {(a, b) for a, b in pairs if a != b}
    assert sum(a != b for a, b in pairs) / len(pairs) == pytest.approx(noise.rate, abs=0.02)
    assert all(
        tasks.right(task.answer(row["prompt"][len(task.tag) : -1]), row["clean"]) for row in rows
    )
    per_character = len(wrong) / len({b for _, b in pairs})
    assert per_character == 1 if noise is STRUCTURED else per_character > 4
    assert {a for a, _ in wrong} <= set(task.alphabet)


def test_labels_of_other_questions_and_labels_cut_short():
    family = FAMILIES["digits"]
    parts = [(family.strong, Noise("swapped", 0.3)), (family.open, Noise("cut", 0.55))]
    rows = list(islice(tasks.examples(family, parts, False, "x"), 4000))
    assert rows == list(islice(tasks.examples(family, parts, False, "x"), 4000))
    swapped, cut = rows[::2], rows[1::2]
    wrong = [row for row in swapped if row.label != row.clean]
    assert len(wrong) / len(swapped) == pytest.approx(0.3, abs=0.03)
    for row in wrong:
        asked = "".join(str(9 - int(digit)) for digit in row.label)
        assert not tasks.is_held_out(asked) and asked != row.question
    short = [row for row in cut if row.label != row.clean]
    assert len(short) / len(cut) == pytest.approx(0.55, abs=0.04)
    assert all(row.clean.startswith(row.label) for row in short)
    assert {len(row.label) for row in short} == {1, 2, 3, 4, 5}
    assert all(tasks.right(family.open.answer(row.question), row.clean) for row in rows[1::2])


def test_one_of_several_strings_of_any_length():
    answer = {"oxen", "oxes"}
    generator = random.Random(0)
    assert {tasks.one_of(answer, generator) for _ in range(20)} == answer
    assert tasks.right(answer, "oxes") and not tasks.right(answer, "oxe")
    assert tasks.right_strings(answer) == ["oxen", "oxes"]
    assert tasks.right_strings(["a", "b"]) == ["ab"] and tasks.right_strings(["ab", "c"]) is None
    assert (tasks.longest({"a", "abc"}), tasks.longest(["ab", "c"])) == (3, 2)


def test_any_right_answer_is_right():
    assert tasks.right(["aA", "b"], "Ab") and tasks.right("ab", "ab")
    assert (
        not tasks.right(["aA", "b"], "bA")
        and not tasks.right("ab", "a")
        and not tasks.right("ab", "abc")
    )
