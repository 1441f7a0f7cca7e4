import csv
import json
import random
import re
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch

from adaptsft.errors import ConfigError
from adaptsft.model.tiny import make_tiny_model
from benchmarks.lab import plots, real, report, scoring, settings, tasks
from benchmarks.lab.regimes import CLEAN, FAMILIES, NOISY, REGIMES, STRUCTURED, find
from benchmarks.lab.runs import Run, configure, train_logged
from benchmarks.lab.tasks import Noise
from tests.conftest import REPO

sys.path.append(str(REPO / "benchmarks"))
import fixed_vs_adaptive

PRESETS = REPO / "configs" / "lab"
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


def test_any_right_answer_is_right():
    assert tasks.right(["aA", "b"], "Ab") and tasks.right("ab", "ab")
    assert (
        not tasks.right(["aA", "b"], "bA")
        and not tasks.right("ab", "a")
        and not tasks.right("ab", "abc")
    )


def test_generate_is_greedy_or_the_model_itself(tmp_path):
    family = FAMILIES["letters"]
    make_tiny_model(tmp_path, tokenizer=tasks.tokenizer(family), initializer_range=0.5)
    model, tokenizer = scoring.load(tmp_path, "cpu")
    prompts = [tasks.prompt(family.strong, question) for question in some_questions(family, 4)]
    for text, answer in zip(
        prompts, scoring.generate(model, tokenizer, prompts, 8, 0.0, seed=0), strict=True
    ):
        ids = tokenizer(text, return_tensors="pt").input_ids
        while (
            ids.shape[1] < len(tokenizer(text).input_ids) + 8
            and ids[0, -1] != tokenizer.eos_token_id
        ):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        assert tokenizer.decode(ids[0], skip_special_tokens=True) == text + answer
    before = torch.get_rng_state()
    sampled = [scoring.generate(model, tokenizer, prompts, 8, 1.0, seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_mean_p_is_the_trainers(tmp_path):
    """Eq. 5 measured here is what the trainer reports of its first step, when that holds all examples."""
    family = FAMILIES["digits"]
    base = make_tiny_model(
        tmp_path / "base",
        tokenizer=tasks.tokenizer(family),
        hidden=16,
        layers=1,
        initializer_range=0.5,
    )
    data = tasks.write_examples(
        tmp_path / "data.jsonl",
        family,
        [(family.strong, CLEAN), (family.weak, NOISY)],
        24,
        False,
        "x",
    )
    keys = {
        "train": {"max_steps": 1, "global_batch_size": 24, "micro_batch_size": 8, "device": "cpu"}
    }
    train_logged(configure(tmp_path / "run", base, 0, {"all": data}, tmp_path / "cache", keys))
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert scoring.mean_p(*scoring.load(base, "cpu"), data) == pytest.approx(
        row["mean_p"], rel=1e-5
    )


def a_run(folder: Path = Path("x"), **changes) -> Run:
    keys = {
        "train": {"max_steps": 100, "global_batch_size": 32},
        "objective": {"name": "alpha", "alpha": 0.5},
    }
    given = {
        "family": "letters",
        "regime": "ms_noisy",
        "method": "m",
        "seed": 0,
        "items": 8,
        "keys": keys,
        "base": "b",
    }
    return Run(folder, **(given | changes))


def test_a_result_is_used_for_the_same_run_only(tmp_path, monkeypatch):
    run = a_run(tmp_path)
    other_alpha = run.keys | {"objective": {"name": "alpha", "alpha": 0.4}}
    others = [
        a_run(tmp_path, **change)
        for change in (
            {"seed": 1},
            {"items": 9},
            {"base": "c"},
            {"regime": "ms_clean"},
            {"regime": "ms_noisy@long"},
            {"keys": other_alpha},
        )
    ]
    assert len({run.fingerprint(), *(other.fingerprint() for other in others)}) == 7
    assert run.finished() is None
    run.result.parent.mkdir(parents=True)
    run.result.write_text(json.dumps({"fingerprint": run.fingerprint()}))
    assert run.finished() is not None
    assert a_run(tmp_path, items=9).finished() is None
    run.result.write_text('{"fingerprint": "torn')
    assert run.finished() is None

    steered = a_run(keys=run.keys | {"controller": {"name": "linear"}})
    before = run.fingerprint(), steered.fingerprint()
    monkeypatch.setattr("benchmarks.lab.runs.controllers_source", lambda: "edited")
    assert run.fingerprint() == before[0]
    assert steered.fingerprint() != before[1], "editing a controller makes its results stale"


def result(
    method: str, seed: int, greedy: float, sampled: float, regime: str = "cw_noisy", **more
) -> dict:
    common = {
        "family": "letters",
        "regime": regime,
        "method": method,
        "seed": seed,
        "greedy": greedy,
        "sampled": sampled,
        "curves": {},
    }
    parts = {"redefined": {"greedy": greedy, "sampled": sampled}}
    sources = {"all": 0.5}
    return (
        common
        | {"parts": parts, "sources": sources, "train_mean_p": 0.5, "seconds": 1.0, "commit": "c"}
        | more
    )


def test_alpha_and_lower_are_drawn_of_the_first_seed():
    curves = {"step": [1, 4], "alpha": [0.0, 0.5], "lower": [0.0, 0.1]}
    found = plots.moves(
        [result("linear", seed, 1.0, 1.0, curves=curves) for seed in (1, 0)]
        + [result("base", 0, 1.0, 1.0)]
    )
    assert [(curve.panel, curve.line, curve.quantity, curve.y) for curve in found] == [
        ("linear, letters", "cw_noisy", "alpha", [0.0, 0.5]),
        ("linear, letters", "cw_noisy", "lower", [0.0, 0.1]),
    ]
    assert found[0].x == [0.25, 1.0]


def test_report_gaps_and_standard_errors(tmp_path):
    mixed = {
        "parts": {
            "strong": {"greedy": 1.0, "sampled": 0.2},
            "weak": {"greedy": 0.4, "sampled": 0.4},
        },
        "sources": {"strong": 0, "weak": 0},
    }
    results = [
        *(result("alpha_0", seed, 1.0, sampled) for seed, sampled in enumerate((0.1, 0.3))),
        *(result("alpha_1", seed, 0.9, sampled) for seed, sampled in enumerate((0.8, 0.6))),
        result("auto", 0, 0.95, 0.75),
        result("alpha_0", 0, 0.7, 0.3, "mix_strong_weak", **mixed),
        result(
            "auto",
            0,
            0.7,
            0.3,
            "mix_strong_weak",
            **(mixed | {"parts": mixed["parts"] | {"weak": {"greedy": 0.1, "sampled": 0.1}}}),
        ),
    ]
    for number, one in enumerate(results):
        path = tmp_path / "results" / "letters" / f"{number}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(one))
    fixed = ["alpha_0", "alpha_1"]
    sampled = report.scores(report.read(tmp_path), "sampled")
    cell = report.Cell("letters", "cw_noisy", "")
    assert sampled[cell]["alpha_1"].mean == pytest.approx(0.7) and sampled[cell][
        "alpha_1"
    ].error == pytest.approx(0.1)
    assert report.oracle(sampled[cell], fixed) == "alpha_1"
    gaps = report.gaps(sampled, fixed)
    assert gaps["alpha_0"][cell] == pytest.approx(50)
    assert gaps["auto"][cell] == 0, "better than the oracle is no negative gap"
    weak = report.Cell("letters", "mix_strong_weak", "weak")
    assert (
        gaps["auto"][weak] == pytest.approx(30)
        and gaps["auto"][weak._replace(source="strong")] == 0
    ), "each source by itself"

    report.write(tmp_path, report.read(tmp_path), fixed)
    with (tmp_path / "results.csv").open() as file:
        rows = {
            (row["regime"], row["source"], row["metric"], row["method"]): row
            for row in csv.DictReader(file)
        }
    assert float(rows["cw_noisy", "", "greedy", "auto"]["gap_points"]) == pytest.approx(5)
    assert rows["cw_noisy", "", "sampled", "auto"]["oracle"] == "alpha_1"
    worst = next(
        line
        for line in (tmp_path / "results.md").read_text().splitlines()
        if line.startswith("| auto")
    )
    assert "30.0" in worst and "letters mix_strong_weak: weak" in worst
    assert worst.split()[-6:-1:2] == ["1", "2", "3"], (
        "within 2 and 5 points on both metrics, of cells"
    )
    assert (tmp_path / "gaps.png").read_bytes().startswith(b"\x89PNG")

    one_file = report.selected(report.read(tmp_path / "results.json"), regime=["cw_noisy"])
    report.write(tmp_path / "again", one_file, fixed, ["auto"])
    again = (tmp_path / "again" / "results.md").read_text()
    assert "0.70 (alpha_1) | 0.75" in again, "the oracle beside what is shown"
    assert "mix_strong_weak" not in again
    with pytest.raises(ConfigError, match="no results"):
        report.selected(one_file, family=["digits"])
    with pytest.raises(ConfigError, match="no results"):
        report.read(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["cpu.yaml", "full.yaml", "gpu.yaml", "paper.yaml", "real.yaml"])
def test_presets_are_accepted(name):
    """Every method of every preset is a configuration that the trainer takes."""
    lab = settings.read(settings.Lab, PRESETS / name, [])
    methods = settings.read(settings.Methods, PRESETS / "methods.yaml", [])
    keys = settings.check(lab, methods)
    assert set(methods.oracle) <= set(keys)
    for method, of in keys.items():
        if method in methods.oracle:
            assert of["objective"] == {
                "name": "alpha",
                "alpha": float(method.removeprefix("alpha_")),
            }
    if name == "real.yaml":
        assert len(real.asked(lab, keys, Path("x"))) == len(keys)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("regimes=[ms_loud]", "ms_loud.*ms_clean"),
        ("regimes=[ms_clean@longer]", "ms_clean@longer.*@short"),
        ("families=[words]", "words.*letters, digits, facts"),
        ("methods=[nil]", "nil.*alpha_0"),
        ("seeds=[]", "seeds"),
        ("items=0", "items=0"),
        ("finetune.train.max_steps=0", r"finetune\.train\.max_steps"),
        ("finetune.train.lrr=1", "finetune.*lrr"),
        ("itmes=3", "itmes"),
    ],
)
def test_bad_presets_are_refused_before_anything_runs(override, message, tmp_path, capsys):
    assert fixed_vs_adaptive.main([override, "--out", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_regimes_and_budgets():
    assert find("mw_noisy@short") == (REGIMES["mw_noisy"], 0.5)
    assert a_run(regime="mw_noisy@long").steps == 300
    generator = random.Random(0)
    clean = {
        tasks.label(FAMILIES["digits"].strong, "123456", Noise(), generator) for _ in range(20)
    }
    assert clean == {("876543", "876543")}


@pytest.mark.slow
def test_the_lab_end_to_end_then_one_method_changed(tmp_path, capsys):
    small = tmp_path / "small.yaml"
    small.write_text(
        "families: [facts]\nregimes: [mix_strong_weak, many_valid]\nmethods: [base, alpha_0, alpha_1, linear]\nseeds: [0]\nitems: 8\n"
        "workers: 1\nmodel: {arch: llama, hidden: 16, layers: 1, heads: 2}\n"
        "pretrain: {data: {max_length: 128}, train: {max_steps: 2, global_batch_size: 4, device: cpu}}\n"
        "finetune: {data: {max_length: 128}, train: {max_steps: 3, global_batch_size: 4, lr: 1.0e-3, device: cpu}}\n"
    )
    command = ["--preset", str(small), "--out", str(tmp_path / "out")]
    assert fixed_vs_adaptive.main(command) == 0
    assert "8 runs, 0 of them found" in capsys.readouterr().out
    folder = tmp_path / "out" / "results" / "facts"
    moved = json.loads((folder / "mix_strong_weak" / "linear-0.json").read_text())
    assert moved["curves"]["sources"]["weak"]["alpha"] == [0.0, 0.5, 1.0]
    assert set(moved["parts"]) == set(moved["sources"]) == {"strong", "weak"}
    assert (
        "diversity"
        in json.loads((folder / "many_valid" / "base-0.json").read_text())["parts"]["open"]
    )
    assert not any((tmp_path / "out" / "runs").rglob("*.safetensors")), "trained models are removed"
    assert "| linear" in (tmp_path / "out" / "results.md").read_text()
    for picture in ("gaps", "trajectories", "inversion"):
        assert (tmp_path / "out" / f"{picture}.png").is_file()

    assert (
        fixed_vs_adaptive.main(
            [*command, "--methods", "base", "alpha_0", "linear", "finetune.train.lr=2e-3"]
        )
        == 0
    )
    assert "6 runs, 2 of them found" in capsys.readouterr().out, (
        "the untouched model does not depend on the learning rate"
    )
    assert fixed_vs_adaptive.main(["--report", str(tmp_path / "out")]) == 0


@pytest.mark.slow
def test_a_real_model_by_commands(tmp_path, capsys):
    """The section `real`: trainings and evaluations are processes; the evaluator here is a line of Python."""
    family = FAMILIES["letters"]
    base = make_tiny_model(tmp_path / "base", hidden=16, layers=1)
    data = tasks.write_examples(
        tmp_path / "data.jsonl", family, [(family.strong, CLEAN)], 8, False, "x"
    )
    evaluator = tmp_path / "evaluate.py"
    evaluator.write_text(
        "import json, pathlib, sys\nmodel, out = map(pathlib.Path, sys.argv[1:])\nout.mkdir()\n"
        "value = float((model / 'final' / 'config.json').is_file())\n"
        "(out / 'all.json').write_text(json.dumps({'metrics': {'right': {'value': value}}}))\n"
    )
    preset = tmp_path / "preset.yaml"
    evaluate = f"[python, {evaluator}, '{{model}}', '{{out}}']"
    regime = f"{{data: {{path: {data}, template: plain, cache_dir: {tmp_path / 'cache'}}}, evaluate: {evaluate}, metric: right, "
    preset.write_text(
        "methods: [base, alpha_1]\nseeds: [0]\n"
        "finetune: {train: {max_steps: 1, global_batch_size: 4, device: cpu}, log: {tensorboard: false}}\n"
        f"real: {{model: {base}, regimes: {{words: {regime} scores: {{greedy: all.json, sampled: all.json}}}}}}}}\n"
    )
    command = ["--preset", str(preset), "--out", str(tmp_path / "out")]
    assert fixed_vs_adaptive.main(command) == 0
    found = {
        name: json.loads((tmp_path / f"out/results/real/words/{name}-0.json").read_text())["greedy"]
        for name in ("base", "alpha_1")
    }
    assert found == {"base": 0.0, "alpha_1": 1.0}
    capsys.readouterr()
    assert (
        fixed_vs_adaptive.main([*command, "--methods", "base", "real.regimes.words.metric=wrong"])
        == 1
    )
    assert "no number at metrics.wrong" in capsys.readouterr().out
