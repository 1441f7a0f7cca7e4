"""Families and regimes that are files: what is asked of them, and a lab of them from end to end."""

import json
import re
from pathlib import Path

import pytest
import yaml

from adaptsft.errors import ConfigError
from benchmarks.lab import families, regimes
from benchmarks.lab.__main__ import main
from tests.benchmarks.lab.test_runs import a_run

# English plurals: questions and answers of several lengths, and a word with two plurals
FAMILY = """
from benchmarks.lab.tasks import Family, Task

WORDS = ["cat", "ox", "church", "day", "lady", "fox", "roof", "cactus", "map", "sea", "box", "pea"]
LOWER = "abcdefghijklmnopqrstuvwxyz"


def question(generator, zipf):
    return generator.choice(WORDS[:6] if zipf else WORDS) + generator.choice(["", "-", "--"])


def plural(word):
    word = word.strip("-")
    return {word + "s", "cacti"} if word == "cactus" else word + "s"


PLURAL = Task("<plural>", plural, LOWER)
COPY = Task("<copy>", lambda word: word.strip("-"), LOWER)
FAMILY = Family(
    name="plurals",
    question=question,
    pretrained=(PLURAL, COPY),
    strong=PLURAL,
    middle=Task("<plural><copy>", lambda word: word.strip("-") + "s" + word[0], LOWER),
    weak=Task("<greek>", lambda word: "αβγδε"[len(word) % 5] * 2, "αβγδε"),
    redefined=Task("<copy>", lambda word: word.strip("-")[::-1], LOWER),
    characters=LOWER + "-αβγδε",
)
"""
REGIMES = """
from benchmarks.lab.regimes import Part, Regime
from benchmarks.lab.tasks import Noise

REGIMES = {
    "weak_cut": Regime((Part("weak", Noise("cut", 0.5)),)),
    "both": Regime((Part("strong", Noise("swapped", 0.5)), Part("weak", Noise())), sources=True),
}
"""


@pytest.fixture
def family(tmp_path: Path) -> Path:
    path = tmp_path / "plurals.py"
    path.write_text(FAMILY)
    return path


def test_every_family_is_declared_for_tuning_or_reporting() -> None:
    folder = Path(families.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "check"}
    assert files == {*families.TUNING, *families.REPORTING}
    assert not {*families.TUNING} & {*families.REPORTING}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("FAMILY = Family(", "OTHER = Family(", "has no FAMILY"),
        ("FAMILY = Family(", "FAMILY = dict(", "is no benchmarks.lab.tasks.Family"),
        ("(PLURAL, COPY)", "(COPY,)", r"`strong` \(<plural>\) is not in `pretrained`"),
        ("(PLURAL, COPY)", "(PLURAL, PLURAL)", "each its own tag"),
        ('Task("<copy>", lambda word: word.strip("-")[::-1]', 'Task("<b>", str', "`redefined` has"),
        ('"<greek>"', '"<copy>"', "`weak` has the tag"),
        ('"<greek>"', '"greek"', "a tag is written"),
        ("return generator", "return 7 # ", "gave 7; it must be a string"),
        (
            '"-αβγδε"',
            '"αβγδε"',
            "the question '.*-.*' has characters that the tokenizer lacks: '-'",
        ),
        ('"-αβγδε"', '"-αβγδ"', "<greek>: the answer to .* lacks: 'ε'; name them in `characters`"),
        ('* 2, "αβγδε"', '* 2, "αβγδ"', "not in its alphabet: 'ε'"),
        ('"αβγδε"[len(word) % 5] * 2', "None", "the answer to .* is None"),
        ('"αβγδε"[len(word) % 5] * 2', '""', "none empty"),
        ('"αβγδε"[len(word) % 5] * 2', '"αβ"', "gives one answer to all"),
        (
            'WORDS[:6] if zipf else WORDS) + generator.choice(["", "-", "--"])',
            '["cat"])',
            "held out",
        ),
        ('word.strip("-") + "s" + word[0]', "word.lost", "line 24: AttributeError"),
        ('name="plurals"', 'name="a/b"', "becomes a folder"),
        ("import Family, Task", "import Family, Tsk", "line 2: ImportError"),
        ("LOWER =", "LOWER ==", "line 5: NameError"),
        ("LOWER =", "LOWER = (", "SyntaxError"),
    ],
)
def test_what_is_wrong_with_a_family_is_one_message(family, old, new, message):
    assert old in FAMILY
    family.write_text(FAMILY.replace(old, new))
    with pytest.raises(ConfigError, match=message) as raised:
        families.find(str(family))
    assert str(family) in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("REGIMES = {", "REGIMES = [", "SyntaxError"),
        ("REGIMES = {", "OTHERS = {", "has no REGIMES"),
        ('"cut"', '"cuts"', "noise 'cuts' is not one of uniform, systematic, swapped, cut"),
        ("0.5)),)", "1.5)),)", "rate 1.5"),
        ('Part("weak", Noise("cut"', 'Part("week", Noise("cut"', "roles week; choose of strong"),
        ("weak_cut", "weak/cut", "becomes a folder"),
    ],
)
def test_what_is_wrong_with_regimes_is_one_message(tmp_path, old, new, message):
    path = tmp_path / "regimes.py"
    assert old in REGIMES
    path.write_text(REGIMES.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        regimes.expanded([str(path)])


def test_names_of_regime_files(tmp_path):
    path = tmp_path / "more.py"
    path.write_text(REGIMES)
    assert regimes.expanded([str(path)]) == [f"{path}:weak_cut", f"{path}:both"]
    chosen = regimes.expanded(["both@60", "ms_clean"], [str(path)])
    assert chosen == [f"{path}:both@60", "ms_clean"]
    assert regimes.find(chosen[0])[1].steps == 60
    assert regimes.name_of(chosen[0]) == "both@60"
    (tmp_path / "plurals.py").write_text(FAMILY)
    without = families.find(str(tmp_path / "plurals.py"))
    with pytest.raises(ConfigError, match=r"many_valid.* needs a task `open`"):
        regimes.require_roles(without, "many_valid")
    assert main(["--families", "none", "--regime-file", str(tmp_path / "absent.py")]) == 2


@pytest.mark.nightly
def test_a_lab_of_files_bases_and_learning_rates(family, tmp_path, capsys):
    """Two bases, one of them stopped early; two learning rates, one of them chosen."""
    (tmp_path / "regimes.py").write_text(REGIMES)
    train = {"global_batch_size": 4, "device": "cpu", "lr": 3e-3}
    of = {"data": {"max_length": 128}}
    content = {
        "families": ["letters"],
        "regimes": ["ms_clean"],
        "methods": ["base", "alpha_0", "linear"],
        "seeds": [0],
        "items": 16,
        "workers": 1,
        "model": {"arch": "llama", "hidden": 16, "layers": 1, "heads": 2},
        "pretrain": of | {"train": train | {"max_steps": 100, "global_batch_size": 16, "lr": 1e-2}},
        "finetune": of | {"train": train | {"max_steps": 2}},
    }
    preset, out = tmp_path / "small.yaml", tmp_path / "out"
    preset.write_text(yaml.safe_dump(content))
    command = ["--preset", str(preset), "--out", str(out), "--family", str(family)]
    command += ["--regime-file", str(tmp_path / "regimes.py"), "--bases", "1", "0@1"]
    command += ["--lrs", "1e-9", "1e-2"]
    assert main(command) == 2
    assert "tune_on" in capsys.readouterr().err
    command += ["--tune-on", "plurals"]
    assert main(command) == 0, capsys.readouterr().err
    # 2 regimes, 2 bases, and the untouched model or 2 methods with 2 learning rates
    assert f"{2 * 2 * (1 + 2 * 2)} runs, 0 of them found" in capsys.readouterr().out
    results = [json.loads(path.read_text()) for path in (out / "results").rglob("*.json")]
    assert {(one["base"], one["strength"], one["lr"]) for one in results} == {
        (base, strength, lr) for base, strength in ((1, None), (0, 1)) for lr in (None, 1e-9, 1e-2)
    }
    strong = {one["strength"]: one["base_scores"]["<plural>"]["greedy"] for one in results}
    assert strong[1] >= 0.01
    steps = {path.name for path in (out / "pretrained" / "plurals").iterdir()}
    assert steps == {"1", "0@1"}
    text = (out / "results.md").read_text()
    chosen = re.findall(r"^\| (alpha_0|linear) +\| (1e-09|0.01) +\|$", text, re.MULTILINE)
    assert len(chosen) == 2
    for title in ("the bases on what", "any of 8 samples", "entropy in nats", "Mean seconds"):
        assert title in text
    assert "both @1: weak" in text
    assert main([*command, "--bases", "0@100"]) == 2
    assert "0@100 of plurals: its strong task is right in" in capsys.readouterr().err
    assert main(["--report", str(out / "results.json"), "--out", str(tmp_path / "again")]) == 2
    assert "--tune-on" in capsys.readouterr().err
    again = ["--report", str(out / "results.json"), "--out", str(tmp_path / "again")]
    assert main([*again, "--tune-on", "plurals"]) == 0
    assert "the bases on what" in (tmp_path / "again" / "results.md").read_text()


def test_the_text_of_the_file_is_part_of_the_fingerprint(family):
    before = a_run(family=str(family)).data_fingerprint()
    family.write_text(FAMILY + "# another\n")
    families.source.cache_clear()
    assert a_run(family=str(family)).data_fingerprint() != before
