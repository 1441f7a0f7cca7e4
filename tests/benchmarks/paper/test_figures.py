"""The figures show the numbers that they are given: formulas, the lab's results, runs and
diagnoses, read back from what was drawn."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adaptsft.analysis import places
from adaptsft.analysis.continuum import REFERENCES
from adaptsft.drawing import DASHES, style
from adaptsft.errors import ConfigError
from adaptsft.train import train
from benchmarks.lab import plots, report, scores as lab_scores
from benchmarks.paper.figures import curves, formulas, inputs, sweeps
from tests.benchmarks.paper.figure_rows import row
from tests.conftest import REPO
from tests.runs import small_config

LAB = REPO / "benchmarks" / "results" / "lab.json"


def drawn(axis: Any) -> dict[str, dict[float, float]]:
    """Label -> {x: y} of the lines with error bars."""
    found = {}
    for container in axis.containers:
        x, y = container.lines[0].get_data()
        found[container.get_label()] = dict(zip(map(float, x), map(float, y), strict=True))
    return found


def levels(axis: Any) -> dict[str, float]:
    """Label -> height of the horizontal lines."""
    return {
        line.get_label(): float(line.get_ydata()[0])
        for line in axis.lines
        if len(set(line.get_ydata())) == 1 and len(line.get_ydata()) == 2
    }


def test_weights_are_the_registered_ones_and_peak_where_they_should():
    figure = formulas.weights(
        [
            "nll",
            "neg_p",
            "alpha:3",
            "neg_p_k:10",
            "log1mp",
            "focal:gamma=5",
            "huber:1",
            "threshold:base=neg_p,lower=0.6",
        ]
    )
    axis = figure.axes[0]
    dots = [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axis.lines
        if line.get_label() == "_maximiser"
    ]
    expected = [
        (0, 1),
        (0.5, 0.25),
        (0.75, 27 / 256),
        (10 / 11, 10 * (10 / 11) ** 10 / 11),
        (1, 1),
        (0.05, 0.95**5 * (0.95 - 0.25 * math.log(0.05))),
        (1 / 3, 4 / 27),
        (0.6, 0.24),
    ]
    assert dots == [pytest.approx(pair, abs=2e-3) for pair in expected]
    lines = {line.get_label(): line for line in axis.lines}
    p = torch.from_numpy(lines["alpha=3"].get_xdata())
    torch.testing.assert_close(torch.from_numpy(lines["alpha=3"].get_ydata()), p**3 * (1 - p))
    assert [
        line.get_xdata()[0]
        for line in axis.lines
        if line.get_linestyle() == "--" and line.get_label().startswith("_child")
    ] == [0.5]
    assert {
        "-log p",
        "-p",
        "log(1-p)",
        "focal, gamma=5",
        "threshold, base=neg_p, lower=0.6",
    } <= set(lines)


def test_weights_that_depend_on_the_other_tokens_say_so():
    figure = formulas.weights(["deft", "eaft", "talr:sequence_nll=0.5", "alpha:1"])
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["deft*", "eaft*", "talr, sequence_nll=0.5", "alpha=1"]
    assert "100 other tokens" in figure.axes[0].get_title()
    p = torch.tensor([0.3], dtype=torch.float64)
    collision = 0.3**2 + 0.7**2 / 100
    assert float(formulas.curve("deft", p).w) == pytest.approx(0.3**collision * 0.7)
    assert float(formulas.curve("talr:sequence_nll=0.5", p).w) == pytest.approx(0.3**2 * 0.7)


def test_first_28_lines_differ_without_colour_or_without_dashes():
    looks = [style(number) for number in range(28)]
    assert len({(look["color"], look["linestyle"]) for look in looks}) == 28
    assert len({look["marker"] for look in looks[:8]}) == 8 and len(DASHES) == 4, (
        "in grey the marker tells the first 8 apart"
    )


def test_quantiles_of_both_sides_and_all_tokens_on_both():
    rows = [
        row("nll", value, percentile=at, side=">=", se=1.0)
        for at, value in ((90, 30), (50, 25), (0, 10))
    ]
    rows += [
        row("nll", 4, percentile=50, side="<="),
        row("neg_p", 33, percentile=50, side=">="),
        row("neg_p", 20, percentile=0, side=">="),
    ]
    rows += [row("base", 15, origin="paper"), row("auto", 34), row("deft", 1)]
    below, above = sweeps.quantiles(rows).axes
    assert drawn(above) == {"-log p": {0: 10, 50: 25, 90: 30}, "-p": {0: 20, 50: 33}}
    assert drawn(below) == {"-log p": {50: 4, 100: 10}, "-p": {100: 20}}
    assert levels(above) == {"base (paper)": 15, "auto": 34}
    bars = above.containers[0].lines[2][0].get_segments()
    assert [tuple(segment[:, 1]) for segment in bars] == [(9, 11), (24, 26), (29, 31)], (
        "standard errors"
    )


def test_alpha_from_the_labs_results():
    """The strong and the weak task of a family: the numbers of results.csv, the same colours, the
    base model's mean p as a level."""
    rows = inputs.only(inputs.lab(LAB), ["model=digits ms_noisy|digits mw_noisy_zipf"])
    figure = sweeps.alpha(rows)
    strong, weak, strong_p, weak_p = figure.axes
    assert [axis.get_title() for axis in figure.axes] == [
        "digits ms_noisy",
        "digits mw_noisy_zipf",
        "",
        "",
    ]
    scores = {
        metric: lab_scores.scores(report.read(LAB), metric)
        for metric in ("sampled", "train_mean_p")
    }
    for regime, axis, below in (("ms_noisy", strong, strong_p), ("mw_noisy_zipf", weak, weak_p)):
        of, p = (scores[metric][lab_scores.Cell("digits", regime, "")] for metric in scores)
        line = drawn(axis)["temperature 1"]
        assert line == {
            float(name[6:]): pytest.approx(100 * value.mean)
            for name, value in of.items()
            if name.startswith("alpha_")
        }
        assert len(line) == 9
        assert drawn(below)["mean p"] == {
            float(name[6:]): pytest.approx(value.mean)
            for name, value in p.items()
            if name.startswith("alpha_")
        }
        assert levels(below)["base, mean p"] == pytest.approx(p["base"].mean)
        assert levels(axis)["auto, temperature 1"] == pytest.approx(100 * of["auto"].mean)
    assert drawn(strong)["temperature 1"][1] > drawn(strong)["temperature 1"][0] + 80, (
        "Fig. 4 in small: -p at the strong end,"
    )
    assert drawn(weak)["greedy"][0] > drawn(weak)["greedy"][1] + 90, "NLL at the weak one"


def test_scale_is_log_log():
    rows = [
        row(name, value, f"{size}B", billions=size)
        for size, *pair in ((3, 8, 9), (32, 25, 40))
        for name, value in zip(("nll", "neg_p"), pair, strict=True)
    ]
    rows += [row("neg_p", 12, "3B", origin="paper", billions=3)]
    (axis,) = sweeps.scale(rows).axes
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert drawn(axis) == {"-log p": {3: 8, 32: 25}, "-p": {3: 9, 32: 40}, "-p (paper)": {3: 12}}
    assert [container.lines[0].get_markerfacecolor() for container in axis.containers][
        -1
    ] == "white"
    (axis,) = sweeps.scale([*rows, row("base", 0, "3B", billions=3)]).axes
    assert (
        axis.get_yscale() == "symlog"
        and axis.get_ylabel() == "score (linear below 8)"
        and drawn(axis)["base"] == {3: 0}
    )


def test_continuum_puts_diagnoses_and_base_models_among_the_papers(tmp_path):
    source = {
        "mean_p": 0.4,
        "mean_p_interval": [0.35, 0.45],
        "above_0.55": 0.3,
        "above_0.55_interval": None,
    }
    (tmp_path / "base_stats.json").write_text(
        json.dumps({"model": {"path": "hub/mine"}, "sources": {"web": source}})
    )
    rows = inputs.rows(tmp_path) + [
        row("base", 1, column=column, mean_p=0.9) for column in ("A", "B")
    ]
    rows += [row("nll", 1, mean_p=0.99), row("base", 1, mean_p=0.2, origin="paper")]
    left, right = places.continuum(rows).axes
    heights = {
        label.get_text(): height
        for height, label in zip(left.get_yticks(), left.get_yticklabels(), strict=True)
    }
    assert len(heights) == len(REFERENCES) + 2
    dots = {
        line.get_ydata()[0]: line.get_xdata()[0] for line in left.lines if line.get_marker() in "oD"
    }
    assert dots[heights["mine, web"]] == 0.4 and dots[heights["M"]] == 0.9, (
        "one dot of a model that has a row per benchmark"
    )
    assert dots[heights["LLaMA-3.1-8B, m23k (medical)"]] == 0.53
    assert list(dots.values()) == sorted(dots.values())
    assert [0.35, 0.45] in [
        list(line.get_xdata()) for line in left.lines if line.get_ydata()[0] == heights["mine, web"]
    ]
    shares = {
        line.get_ydata()[0]: line.get_xdata()[0]
        for line in right.lines
        if line.get_marker() in "oD"
    }
    assert (
        shares[heights["mine, web"]] == 0.3
        and shares[heights["DeepSeekMath-7B, NuminaMath-CoT"]] == 0.767
        and len(shares) == 5
    )


def test_trajectories_of_a_real_run(tmp_path, tiny_model):
    """alpha of a schedule, per source, and nothing where nothing moves."""
    data = [{"name": name, "path": str(tmp_path / "data.jsonl")} for name in ("a", "b")]
    moving = small_config(
        tmp_path,
        tiny_model(layers=1),
        "moving",
        objective__name="alpha",
        controller__name="linear",
        data__path="",
        data__sources=data,
        train__max_steps=4,
    )
    train(moving)
    still = tmp_path / "still"
    still.mkdir()
    (still / "metrics.jsonl").write_text(
        json.dumps({"step": 1, "alpha": 0.0, "lower": 0.0, "upper": 1.0}) + "\n"
    )
    folders = [Path(moving.run_dir), still]
    figure = curves.trajectories(inputs.runs(folders))
    (axis,) = figure.axes
    assert axis.get_title() == "moving" and axis.get_ylabel() == "alpha"
    lines = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines
    }
    rows = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    assert lines == {
        name: ([1, 2, 3, 4], [row["sources"][name]["alpha"] for row in rows]) for name in ("a", "b")
    }
    assert lines["a"][1][0] == 0.0 < lines["a"][1][-1]
    with pytest.raises(ConfigError, match=r"stand still.*alpha=0"):
        curves.trajectories(inputs.runs(folders[1:]))


def test_thresholds_have_panels_of_their_own_and_runs_of_one_name_are_told_apart(tmp_path):
    for parent in ("x", "y"):
        folder = tmp_path / parent / "run"
        folder.mkdir(parents=True)
        steps = [
            {"step": step, "alpha": 0.5 * step, "lower": 0.1 * step, "upper": 1.0}
            for step in (1, 2)
        ]
        # it is going on
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in steps) + '{"step": 3, "al'
        )
    figure = curves.trajectories(inputs.runs([tmp_path / "x" / "run", tmp_path / "y" / "run"]))
    shown = [
        (axis.get_title(), axis.get_ylabel(), [line.get_label() for line in axis.lines])
        for axis in figure.axes
        if axis.get_visible()
    ]
    assert [(title, label) for title, label, _ in shown] == [
        ("x/run", "alpha"),
        ("y/run", "alpha"),
        ("x/run", "threshold on p"),
        ("y/run", "threshold on p"),
    ]
    assert shown[-1][2] == ["lower"], "upper stands still"


def test_the_lab_draws_by_the_same_code():
    """Names of methods become places on the axes of Fig. 3 and 4."""
    cell, of = lab_scores.Cell("letters", "ms_noisy", ""), lab_scores.Score(0.5, 0.1, 3)
    methods = ("alpha_0", "alpha_0.5", "nll_top90", "log1mp_low50", "neg_p", "auto")
    rows = plots.rows(
        {"greedy": {cell: dict.fromkeys(methods, of)}, "sampled": {}, "train_mean_p": {}}
    )
    fields = ("objective", "alpha", "side", "percentile")
    assert [tuple(found.get(field) for field in fields) for found in rows] == [
        ("alpha_0", 0.0, None, None),
        ("nll", None, ">=", 0),
        ("alpha_0.5", 0.5, None, None),
        ("nll", None, ">=", 10),
        ("log1mp", None, "<=", 50),
        ("neg_p", None, ">=", 0),
        ("auto", None, None, None),
    ]
    assert {(found["value"], found["se"], found["n"]) for found in rows} == {(50.0, 10.0, 3)}
    below, above = sweeps.quantiles(rows).axes
    assert drawn(above)["-log p"] == {0: 50, 10: 50} and drawn(below)["log(1-p)"] == {50: 50}
