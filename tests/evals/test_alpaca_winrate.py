"""AlpacaEval: win rates against the leaderboard's."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.alpaca import winrate
from adaptsft.evals.alpaca.annotations import Annotations, read_annotations
from adaptsft.evals.alpaca.length_control import (
    published_length_controlled,
    read_csv,
    read_difficulty,
)


def leaderboard(folder: Path) -> dict[str, dict[str, float]]:
    columns = (
        "",
        "win_rate",
        "standard_error",
        "discrete_win_rate",
        "n_total",
        "n_wins",
        "n_draws",
        "length_controlled_winrate",
    )
    table = read_csv(folder / "leaderboard_AE2_weighted_gpt4_turbo.csv", columns)
    return {
        row[0]: dict(zip(columns[1:], map(float, row[1:]), strict=True))
        for row in zip(*table.values(), strict=True)
    }


@pytest.fixture(scope="module")
def folder(shared_data: Path) -> Path:
    return shared_data / "alpaca"


@pytest.fixture(scope="module")
def published(folder: Path) -> list[tuple[Annotations, dict[str, float]]]:
    board = leaderboard(folder)
    found = read_annotations(folder / "compact_annotations.json")
    return [
        (annotations, board[annotations.model])
        for annotations in found
        if annotations.model in board
    ]


def test_win_rates_of_the_leaderboard(published) -> None:
    assert len(published) == 19
    for annotations, expected in published:
        found = winrate.win_rate(annotations)
        for key in (
            "win_rate",
            "standard_error",
            "discrete_win_rate",
            "n_total",
            "n_wins",
            "n_draws",
        ):
            assert found[key] == pytest.approx(expected[key], abs=1e-9), (annotations.model, key)


def test_length_controlled_win_rates_from_published_weights(folder: Path, published) -> None:
    weights, board = folder / "glm_weights_length_controlled_v1.csv", leaderboard(folder)
    difficulty = read_difficulty(folder / "instruction_difficulty_recovered.csv")
    annotated = {annotations.model: len(annotations.preference) for annotations, _ in published}
    models = [name for name in read_csv(weights, [""])[""] if name in board]
    errors = []
    for model in models:
        found, _ = published_length_controlled(
            weights, difficulty[: annotated.get(model, 805)], model
        )
        errors.append(abs(found - board[model]["length_controlled_winrate"]))
    assert len(errors) == 199
    assert np.mean(np.array(errors) <= 1e-4) >= 0.95


def test_fitted_length_controlled_win_rates(folder: Path, published) -> None:
    """With a surrogate of df_gamed.csv, so not to the last digit."""
    errors = []
    for annotations, expected in published:
        found = winrate.evaluate(annotations, df_gamed=folder / "df_gamed_SURROGATE.csv")
        errors.append(abs(found["lc_win_rate"] - expected["length_controlled_winrate"]))
    assert np.mean(errors) <= 0.1
    assert max(errors) <= 0.3


def test_the_fit_takes_length_out(folder: Path, published) -> None:
    """Preferences that follow the lengths alone: the model wins where its output is longer."""
    annotations, _ = published[0]
    longer = (annotations.delta_length < 0).astype(float)
    biased = Annotations(
        "longer", annotations.reference, "unknown", longer, annotations.delta_length
    )
    found = winrate.evaluate(biased, df_gamed=folder / "df_gamed_SURROGATE.csv")
    assert found["win_rate"] + 10 < found["lc_win_rate"] < 50


def test_the_published_layout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "annotations_alpaca-7b.json"
    assert winrate.main([str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = leaderboard(folder)["alpaca-7b"]
    assert found["judge"] == "weighted_alpaca_eval_gpt4_turbo"
    assert found["win_rate"] == pytest.approx(expected["win_rate"], abs=1e-9)
    assert found["lc_win_rate"] is None and "LC unavailable" in found["notes"][0]
    weights = ["--glm-weights", str(folder / "glm_weights_length_controlled_v1.csv")]
    weights += ["--difficulty", str(folder / "instruction_difficulty_recovered.csv")]
    assert winrate.main([str(path), *weights]) == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[:3] == ["alpaca-7b", "805", f"{expected['win_rate']:.2f}"]
    assert row[4] == f"{expected['length_controlled_winrate']:.2f}"


def annotation(preference: object, output: str = "yes") -> dict[str, object]:
    record = {
        "instruction": "Is it?",
        "output_1": "no",
        "output_2": output,
        "generator_1": "reference",
        "generator_2": "model",
    }
    return record | {"annotator": "someone", "preference": preference}


def test_two_runs_of_one_name_are_two_models(tmp_path: Path) -> None:
    """Two seeds of an objective have one name; only draws everywhere are the model itself."""
    name = {"generator_1": "nll", "generator_2": "nll"}
    for rows, lc in (
        ([annotation(1.9) | name] * 5, None),
        ([annotation(1.5, "no") | name] * 5, 50.0),
    ):
        (tmp_path / "a.json").write_text(json.dumps(rows))
        assert winrate.evaluate(read_annotations(tmp_path / "a.json")[0])["lc_win_rate"] == lc


def test_draws_and_missing_preferences(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([annotation(value) for value in (2, "1.0", 0, 1.5, None)]))
    [found] = read_annotations(path)
    scores = winrate.win_rate(found)
    assert scores["win_rate"] == 50.0
    assert scores["standard_error"] == pytest.approx(100 * math.sqrt(0.5 / 3 / 4))
    assert (
        scores["n_wins"],
        scores["n_losses"],
        scores["n_draws"],
        scores["n_without_preference"],
    ) == (1, 1, 2, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([annotation(2), annotation(2.5)], "item 1: preference is 2.5"),
        ([annotation("won")], "item 0: preference is 'won'"),
        ([{"preference": 1}], "item 0: 'generator_1' is missing"),
        ([annotation(2), annotation(2) | {"generator_2": "other"}], "several models"),
        ({"m": {"preference": [1]}}, "'m': generator_1, generator_2, len_1, len_2 missing"),
        ("text", "neither a list of annotations"),
    ],
)
def test_annotations_that_cannot_be_read(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotations\.json") as error:
        read_annotations(path)
    assert message in str(error.value)


def test_options_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps([annotation(2)]))
    for arguments, message in (
        (["--df-gamed", "a.csv", "--glm-weights", "b.csv"], "give one of them"),
        (["--glm-weights", "b.csv"], "go together"),
        (["--baseline", "other"], "it needs --glm-weights"),
    ):
        with pytest.raises(ConfigError, match=message):
            winrate.main([str(path), *arguments])
