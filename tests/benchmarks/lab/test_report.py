"""Gaps, standard errors, tables and curves from results that are written here."""

import csv
import json

import pytest

from adaptsft.errors import ConfigError
from benchmarks.lab import plots, report, scores


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


def test_what_is_moved_is_drawn_of_the_first_seed():
    curves = {"step": [1, 4], "alpha": [0.0, 0.5], "floor": [0.3, 0.0], "lower": [0.0, 0.1]}
    found = plots.moves(
        [result("linear", seed, 1.0, 1.0, curves=curves) for seed in (1, 0)]
        + [result("base", 0, 1.0, 1.0)]
    )
    assert [(curve.panel, curve.line, curve.quantity, curve.y) for curve in found] == [
        ("linear, letters", "cw_noisy", "alpha", [0.0, 0.5]),
        ("linear, letters", "cw_noisy", "floor", [0.3, 0.0]),
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
    sampled = scores.scores(report.read(tmp_path), "sampled")
    cell = scores.Cell("letters", "cw_noisy", "")
    assert sampled[cell]["alpha_1"].mean == pytest.approx(0.7) and sampled[cell][
        "alpha_1"
    ].error == pytest.approx(0.1)
    assert scores.oracle(sampled[cell], fixed) == "alpha_1"
    gaps = scores.gaps(sampled, fixed)
    assert gaps["alpha_0"][cell] == pytest.approx(50)
    assert gaps["auto"][cell] == 0, "better than the oracle is no negative gap"
    weak = scores.Cell("letters", "mix_strong_weak", "weak")
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


def test_what_is_behind_by_more_than_its_standard_error(tmp_path):
    """Pairs from the same base and seed: 10, 6 and 8 points are 8 +- 1.2; 20 and -14 are noise."""
    leads = {"a": (0.1, 0.06, 0.08), "b": (0.2, -0.14), "c": (0.01,)}
    results = [result("auto", seed, 0.5 + seed / 10, 0.5) for seed in range(3)]
    for method, of in leads.items():
        results += [
            result(method, seed, 0.5 + seed / 10 + lead, 0.5) for seed, lead in enumerate(of)
        ]
    cell = scores.Cell("letters", "cw_noisy", "")
    assert scores.behind(results, "greedy", "auto", [*leads, "auto"]) == {cell: ["a 8 ± 1"]}
    assert scores.behind(results, "sampled", "auto", [*leads]) == {}
    assert scores.behind(results, "greedy", "c", ["a"]) == {cell: ["a 9"]}
    report.write(tmp_path, results, ["a"], ["auto", "a"])
    assert "| letters cw_noisy | a 8 ± 1 |" in (tmp_path / "results.md").read_text()


def test_the_oracle_without_its_luck():
    """Alpha 0 is right from base 0, alpha 1 from base 1: of two bases each gets what was right from
    the other. With a third, which no choice of its own tells apart, the first method is taken."""
    greedy = {"alpha_0": (1.0, 0.0, 0.9), "alpha_1": (0.0, 1.0, 0.3)}

    def found(bases: int) -> dict:
        results = [
            result(method, 0, values[base], 0.5, base=base)
            for method, values in greedy.items()
            for base in range(bases)
        ]
        return scores.of_other_bases(results, "greedy", [*greedy])

    cell = scores.Cell("letters", "cw_noisy", "")
    assert found(1) == {}
    assert found(2)[cell].mean == 0.0
    # base 0: alpha_1 is better from 1 and 2; base 1: alpha_0 from 0 and 2; base 2: equal, the first
    assert found(3)[cell].mean == pytest.approx((0.0 + 0.0 + 0.9) / 3)
