"""python -m adaptsft.evals winrate: AlpacaEval 2 from recorded judge annotations.

Win rate, its standard error, and the length-controlled win rate.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.alpaca.annotations import Annotations, mean_and_error, read_annotations
from adaptsft.evals.alpaca.length_control import (
    FETCH,
    REFERENCE,
    first_difficulties,
    fitted_length_controlled,
    published_length_controlled,
    read_difficulty,
)


def win_rate(annotations: Annotations) -> dict[str, float]:
    """Win rate (%), its standard error, and the counts.

    Items without a preference are left out, and their number is returned.
    """
    preference = annotations.preference[~np.isnan(annotations.preference)]
    rate, error = mean_and_error(preference)
    wins, losses = int((preference > 0.5).sum()), int((preference < 0.5).sum())
    draws = int((preference == 0.5).sum())
    n = len(preference)
    return {
        "win_rate": rate,
        "standard_error": error,
        "discrete_win_rate": 100 * (wins + draws / 2) / n if n else math.nan,
        "n_wins": wins,
        "n_losses": losses,
        "n_draws": draws,
        "n_total": n,
        "n_without_preference": len(annotations.preference) - n,
    }


def evaluate(
    annotations: Annotations,
    *,
    df_gamed: str | Path | None = None,
    glm_weights: str | Path | None = None,
    difficulty: str | Path | None = None,
    baseline: str | None = None,
) -> dict[str, Any]:
    """`win_rate(…)`, `lc_win_rate` and `lc_standard_error` (None: unavailable), and `notes`.

    At most one of `df_gamed` (fit) and `glm_weights` with `difficulty` (published) may be given;
    `baseline` names another published model than the reference, and needs `glm_weights`.
    """
    if df_gamed and glm_weights:
        raise ConfigError(
            "--df-gamed fits the length-controlled win rate, --glm-weights looks it up: give one "
            "of them"
        )
    if bool(glm_weights) != bool(difficulty):
        fetch = FETCH.format("instruction_difficulty.csv")
        raise ConfigError(
            f"--glm-weights and --difficulty go together; the difficulties are on the hub: {fetch}"
        )
    if baseline and not glm_weights:
        raise ConfigError(
            "--baseline compares two published models: it needs --glm-weights and --difficulty"
        )
    notes, rate, error, method = [], None, None, None
    draws = bool((annotations.preference == 0.5).all()) and not annotations.delta_length.any()
    # two runs of one objective have one name, and are not the same model
    if annotations.model == annotations.reference and draws:
        rate, error, method = 50.0, 0.0, "the model is the reference"
    elif df_gamed:
        rate, error = fitted_length_controlled(annotations, df_gamed)
        method = f"fitted, {Path(df_gamed).name}"
        notes += _doubts_of_fit(annotations, df_gamed)
    elif glm_weights and difficulty:
        against = baseline or annotations.reference
        n = len(annotations.preference)
        known = first_difficulties(read_difficulty(difficulty), n, difficulty)
        rate, error = published_length_controlled(glm_weights, known, annotations.model, against)
        method = f"published weights, against {against}"
    else:
        notes.append(f"LC unavailable: give --df-gamed ({FETCH.format('df_gamed.csv')})")
    scores = win_rate(annotations)
    if rate is not None and abs(rate - scores["win_rate"]) > 10 and baseline is None:
        notes.append(
            "LC is more than 10 points from WR: look at the lengths, and for constant outputs, "
            "before believing either"
        )
    return {
        "model": annotations.model,
        "reference": annotations.reference,
        "judge": annotations.judge,
        **scores,
        "lc_win_rate": rate,
        "lc_standard_error": error,
        "lc_method": method,
        "notes": notes,
    }


def _doubts_of_fit(annotations: Annotations, df_gamed: str | Path) -> list[str]:
    """Where the annotations differ from those that the gamed baselines were made for."""
    notes = []
    if annotations.reference != REFERENCE:
        notes.append(
            f"the gamed baselines are those of {REFERENCE}, the reference here is "
            f"{annotations.reference}"
        )
    if "gpt4_turbo" not in annotations.judge and annotations.judge != "unknown":
        notes.append(
            "the gamed baselines were judged by weighted_alpaca_eval_gpt4_turbo, these outputs by "
            f"{annotations.judge}"
        )
    if len(annotations.preference) != len(read_difficulty(df_gamed)):
        notes.append(
            "some instructions are missing: difficulties are joined by position, as the "
            "leaderboard does, and are shifted after a gap"
        )
    return notes


def main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    found = [a for a in read_annotations(options.annotations) if options.model in (None, a.model)]
    if not found:
        raise DataError(f"{options.annotations}: holds no annotations of {options.model!r}")
    files = ("df_gamed", "glm_weights", "difficulty", "baseline")
    sources = {key: getattr(options, key) for key in files}
    results = [evaluate(annotations, **sources) for annotations in found]
    if options.json:
        for result in results:
            print(json.dumps(result))
    else:
        _print_table(results)
    return 0


def _print_table(results: list[dict[str, Any]]) -> None:
    width = max(len("model"), *(len(result["model"]) for result in results))
    print(f"{'model':{width}}  {'N':>5}  {'WR':>6}  {'SE':>5}  {'LC':>6}  {'SE':>5}")
    for result in results:
        row = (
            f"{result['model']:{width}}  {result['n_total']:5d}  {result['win_rate']:6.2f}  "
            f"{result['standard_error']:5.2f}"
        )
        if result["lc_win_rate"] is None:
            print(f"{row}  {'n/a':>6}  {'n/a':>5}")
        else:
            print(f"{row}  {result['lc_win_rate']:6.2f}  {result['lc_standard_error']:5.2f}")
    references = ", ".join(sorted({result["reference"] for result in results}))
    judges = ", ".join(sorted({result["judge"] for result in results}))
    print(f"reference: {references}; judge: {judges}")
    for result in results:
        if unjudged := result["n_without_preference"]:
            print(
                f"{result['model']}: {unjudged} of {unjudged + result['n_total']} pairs unjudged, "
                "and left out: neither m nor M was among the judge's first tokens"
            )
    models_of: dict[str, list[str]] = {}
    for result in results:
        for note in result["notes"]:
            models_of.setdefault(note, []).append(result["model"])
    for note, models in models_of.items():
        print(f"{', '.join(models) if len(models) <= 3 else f'{len(models)} models'}: {note}")


def _parser() -> argparse.ArgumentParser:
    parse = argparse.ArgumentParser(
        prog="python -m adaptsft.evals winrate",
        description="AlpacaEval 2: win rate, standard error and length-controlled win rate from "
        "recorded judge annotations.",
        epilog="Annotations are made by `python -m adaptsft.evals judge`, or downloaded from the "
        "leaderboard. See docs/alpaca_eval.md.",
    )
    parse.add_argument(
        "annotations",
        metavar="ANNOTATIONS.json",
        help="the leaderboard's annotations.json, or {model: table} of several models",
    )
    parse.add_argument("--model", help="only this model of the file")
    parse.add_argument(
        "--df-gamed",
        metavar="CSV",
        help=f"fit the length-controlled win rate; the file: {FETCH.format('df_gamed.csv')}",
    )
    parse.add_argument(
        "--glm-weights",
        metavar="CSV",
        help="look it up in the published weights of leaderboard models; needs --difficulty",
    )
    parse.add_argument(
        "--difficulty",
        metavar="CSV",
        help=f"the file: {FETCH.format('instruction_difficulty.csv')}",
    )
    parse.add_argument(
        "--baseline",
        metavar="NAME",
        help="with --glm-weights: against this published model instead of the reference",
    )
    parse.add_argument(
        "--json", action="store_true", help="one JSON object per model instead of a table"
    )
    return parse
