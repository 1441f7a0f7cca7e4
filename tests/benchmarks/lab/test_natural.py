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
each_family = pytest.mark.parametrize("name", NATURAL)


def answer(family: str, role: str, question: str) -> tasks.Answer:
    return families.find(family).role(role).answer(question)


def test_answers():
    assert answer("dates", "strong", "60314") == "sam. 14 mars"
    assert answer("dates", "middle", "60814") == "Sab, 14 Agt"
    assert answer("dates", "redefined", "60314") == "Jumamosi, 14 Mac"
    assert answer("dates", "open", "60314") == {"суб 14. мар", "sub 14. mar"}
    assert answer("countries", "strong", "DEGR") == "Allemagne, Grèce"
    assert answer("countries", "redefined", "DEDE") == "Almaañ, Almaañ"
    assert answer("inflection", "strong", "корова") == "коровы"
    assert answer("inflection", "middle", "корова") == "коровам"
    assert answer("inflection", "weak", "корова") == "korovy"
    assert answer("inflection", "open", "корова") == {"коровой", "коровою"}
    assert answer("pronunciation", "strong", "city") == "sIti"
    assert answer("pronunciation", "middle", "city") == "sI1ti0"
    assert answer("pronunciation", "open", "city") == {"sIti", "sɪti"}
    assert answer("numbers", "strong", "42") == "quarantadue"
    assert answer("numbers", "open", "71") == {"soixante et onze", "septante et un"}
    assert answer("measures", "strong", "2.5y") == "2,5 roku"
    assert answer("measures", "strong", "1234y") == "1 234 lata"
    assert answer("measures", "redefined", "3min") == "3 perc"
    assert answer("measures", "open", "5m") == {"5 метара", "5 metara"}
    assert answer("pinyin", "strong", "zhong1guo2") == "jonggwo"
    assert answer("pinyin", "middle", "nv3er2") == "ǚ-ér"
    assert answer("pinyin", "weak", "zhong1guo2") == "ㄓㄨㄥㄍㄨㄛˊ"
    assert answer("pinyin", "redefined", "nv3er2") == "nü-erh"
    assert answer("codons", "strong", "atggcaaaatga") == "MetAlaLysTer"
    assert answer("codons", "middle", "atggcaaaatga") == "MetAlaLysTrp"
    assert answer("codons", "weak", "atggcaaaatga") == "МетАлаЛизТер"
    assert answer("codons", "redefined", "atggcaaaatga") == "TyrArgPheThr"


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
