"""Families that are made from packages: what their tasks ask, and what is said where the package is
missing or another one."""

import re
import sys
from itertools import islice

import pytest

from adaptsft.errors import ConfigError
from benchmarks.lab import families, loading, tasks
from tests.conftest import REPO

NATURAL = (
    "dates",
    "countries",
    "inflection",
    "pronunciation",
    "numbers",
    "measures",
    "pinyin",
    "codons",
)
# reading a dictionary of 240,000 forms takes as long as the rest together
LONG = pytest.param("inflection", marks=pytest.mark.nightly)
each_family = pytest.mark.parametrize(
    "name", [LONG if name == "inflection" else name for name in NATURAL]
)


ANSWERS = {
    "dates": [
        ("strong", "60314", "sam. 14 mars"),
        ("middle", "60814", "Sab, 14 Agt"),
        ("redefined", "60314", "Jumamosi, 14 Mac"),
        ("open", "60314", {"суб 14. мар", "sub 14. mar"}),
    ],
    "countries": [
        ("strong", "DEGR", "Allemagne, Grèce"),
        ("redefined", "DEDE", "Almaañ, Almaañ"),
    ],
    "inflection": [
        ("strong", "корова", "коровы"),
        ("middle", "корова", "коровам"),
        ("weak", "корова", "korovy"),
        ("open", "корова", {"коровой", "коровою"}),
    ],
    "pronunciation": [
        ("strong", "city", "sIti"),
        ("middle", "city", "sI1ti0"),
        ("open", "city", {"sIti", "sɪti"}),
    ],
    "numbers": [
        ("strong", "42", "quarantadue"),
        ("open", "71", {"soixante et onze", "septante et un"}),
    ],
    "measures": [
        ("strong", "2.5y", "2,5 roku"),
        ("strong", "1234y", "1 234 lata"),
        ("redefined", "3min", "3 perc"),
        ("open", "5m", {"5 метара", "5 metara"}),
    ],
    "pinyin": [
        ("strong", "zhong1guo2", "jonggwo"),
        ("middle", "nv3er2", "ǚ-ér"),
        ("weak", "zhong1guo2", "ㄓㄨㄥㄍㄨㄛˊ"),
        ("redefined", "nv3er2", "nü-erh"),
    ],
    "codons": [
        ("strong", "atggcaaaatga", "MetAlaLysTer"),
        ("middle", "atggcaaaatga", "MetAlaLysTrp"),
        ("weak", "atggcaaaatga", "МетАлаЛизТер"),
        ("redefined", "atggcaaaatga", "TyrArgPheThr"),
    ],
}


@each_family
def test_answers(name):
    for role, question, expected in ANSWERS[name]:
        assert families.find(name).role(role).answer(question) == expected, (role, question)


@each_family
def test_roles_are_what_they_say(name):
    family = families.find(name)
    tokenizer = tasks.tokenizer(family)
    assert len(tokenizer) < 256, "a tiny model's vocabulary"
    asked = list(dict.fromkeys(islice(tasks.questions(family, False, False, "x"), 500)))
    held_out = set(islice(tasks.questions(family, False, True, "x"), 500))
    assert len(asked) > 150 and len(held_out) > 150 and not held_out & set(asked)
    known = {c for task in family.pretrained for c in task.alphabet}
    assert len(set(family.weak.alphabet) - known) > 9, "another script"
    for task in family.tasks():
        for question in asked:
            for text in tasks.right_strings(task.answer(question)) or []:
                assert 0 < len(text) <= 30 and set(text) <= set(task.alphabet)
                whole = tasks.prompt(task, question) + text
                assert tokenizer.decode(tokenizer(whole).input_ids) == whole
    before = next(task for task in family.pretrained if task.tag == family.redefined.tag)
    same = sum(before.answer(question) == family.redefined.answer(question) for question in asked)
    assert same < 0.05 * len(asked)
    several = [len(tasks.right_strings(family.open.answer(q)) or []) > 1 for q in asked]
    assert sum(several) > 0.2 * len(several)


def test_a_missing_package_is_one_message(monkeypatch):
    path = families.path_of("dates")
    monkeypatch.setitem(sys.modules, "babel.dates", None)
    monkeypatch.delitem(sys.modules, str(path), raising=False)  # where it is loaded already
    with pytest.raises(ConfigError, match=r"babel==2.18.0 is needed.*adaptsft\[lab\]"):
        loading.attribute(path, "FAMILY")


def test_other_data_are_one_message():
    loading.require_data({"a": [1]}, "2147dbdb56c4868b", "x==1")
    with pytest.raises(ConfigError, match=r"the data of x==1 are others here"):
        loading.require_data({"a": [2]}, "2147dbdb56c4868b", "x==1")


def test_pins_are_those_of_the_extra():
    text = (REPO / "pyproject.toml").read_text()
    for name in NATURAL:
        for pin in re.findall(r'"([\w-]+==[\w.]+)"', families.source(name)):
            assert f'"{pin}"' in text, pin
