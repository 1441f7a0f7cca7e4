"""AlpacaEval 2 from recorded judge annotations: win rate, its standard error, and the
length-controlled win rate.

A preference is the judge's: 1 for the reference (output_1), 2 for the model (output_2), anything
between is its probability + 1; 0 and 1.5 are draws. The length-controlled win rate is what a
logistic model of the preferences predicts when both outputs are equally long (Dubois et al.,
arXiv:2404.04475, equation 2; conventions of tatsu-lab/alpaca_eval 0.6.6, length_controlled_v1):

logit P(model wins) = bias + w_length * tanh((len_1 - len_2) / std) + w_difficulty * difficulty of
the instruction
"""

import argparse
import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsft.errors import ConfigError, DataError

FEATURES = (
    "np.tanh(std_delta_len)",
    "instruction_difficulty",
    "not_gamed_baseline.astype(float)",
)  # columns of the published weights
GAMED_WEIGHT = (
    0.2 / 2
)  # of a row of the gamed baselines, of which there are two; a row of the model weighs 1
# what difficulties, weights and gamed baselines were measured against
REFERENCE = "gpt4_1106_preview"
FETCH = "hf download tatsu-lab/alpaca_eval {} --repo-type dataset"


Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Annotations:
    """One model against one reference. Arrays of n items, in the order of the 805 instructions."""

    model: str
    reference: str
    judge: str
    preference: Floats  # float64, probability that the model wins; NaN where the judge gave none
    delta_length: Floats  # float64, characters of the reference's output minus the model's


def read_annotations(path: str | Path) -> list[Annotations]:
    """Of an annotations.json (a list of records, one model) or its compact layout ({model:

    {preference, len_1, len_2}}).

    Raises DataError with file, model and item.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error})") from None
    if isinstance(content, dict) and content:
        for name, table in content.items():
            missing = {"generator_1", "generator_2", "preference", "len_1", "len_2"} - set(
                table if isinstance(table, dict) else ()
            )
            if missing:
                raise DataError(
                    f"{path}, {name!r}: {', '.join(sorted(missing))} missing; a compact file "
                    "holds them for every model"
                )
            if not len(table["preference"]) == len(table["len_1"]) == len(table["len_2"]) > 0:
                raise DataError(
                    f"{path}, {name!r}: preference, len_1 and len_2 must be lists of one length, "
                    "and not empty"
                )
        return [
            _annotations(table, table.get("judge", "unknown"), f"{path}, {name!r}")
            for name, table in content.items()
        ]
    if (
        not isinstance(content, list)
        or not content
        or not all(isinstance(record, dict) for record in content)
    ):
        raise DataError(
            f"{path}: holds neither a list of annotations nor {{model: table}}; see "
            "docs/alpaca_eval.md"
        )
    for number, record in enumerate(content):
        for key in ("generator_1", "generator_2", "output_1", "output_2", "preference"):
            if key not in record:
                raise DataError(
                    f"{path}, item {number}: {key!r} is missing; the record has {', '.join(record)}"
                )
    pairs = {
        (record["generator_1"], record["generator_2"], record.get("annotator", "unknown"))
        for record in content
    }
    if len(pairs) > 1:
        raise DataError(
            f"{path}: holds several models, references or judges, {sorted(pairs)}; give each a "
            "file of its own"
        )
    generator_1, generator_2, judge = pairs.pop()
    table = {
        "generator_1": generator_1,
        "generator_2": generator_2,
        "preference": [record["preference"] for record in content],
        "len_1": [len(record["output_1"]) for record in content],
        "len_2": [len(record["output_2"]) for record in content],
    }
    return [_annotations(table, judge, str(path))]


def _annotations(table: dict[str, Any], judge: str, place: str) -> Annotations:
    preference = np.empty(len(table["preference"]))
    for item, value in enumerate(table["preference"]):
        try:
            number = (
                math.nan if value is None else float(value)
            )  # the official files hold numbers as text
        except (TypeError, ValueError):
            number = math.inf
        if not (math.isnan(number) or number == 0 or 1 <= number <= 2):
            raise DataError(
                f"{place}, item {item}: preference is {value!r}; it must be 0, null, or from 1 "
                "(reference) to 2 (model)"
            )
        preference[item] = 0.5 if number == 0 else number - 1
    delta = np.asarray(table["len_1"], dtype=np.float64) - np.asarray(
        table["len_2"], dtype=np.float64
    )
    return Annotations(table["generator_2"], table["generator_1"], judge, preference, delta)


def _mean(values: Floats) -> tuple[float, float]:
    """Mean of [n] probabilities and its standard error, in percent."""
    if len(values) < 2:
        return 100 * float(values.mean()) if len(values) else math.nan, math.nan
    return 100 * float(values.mean()), 100 * float(values.std(ddof=1)) / math.sqrt(len(values))


def win_rate(annotations: Annotations) -> dict[str, float]:
    """Win rate (%), its standard error, and the counts.

    Items without a preference are left out, and counted.
    """
    preference = annotations.preference[~np.isnan(annotations.preference)]
    rate, error = _mean(preference)
    wins, losses, draws = (
        int(count)
        for count in ((preference > 0.5).sum(), (preference < 0.5).sum(), (preference == 0.5).sum())
    )
    return {
        "win_rate": rate,
        "standard_error": error,
        "discrete_win_rate": 100 * (wins + draws / 2) / len(preference)
        if len(preference)
        else math.nan,
        "n_wins": wins,
        "n_losses": losses,
        "n_draws": draws,
        "n_total": len(preference),
        "n_without_preference": len(annotations.preference) - len(preference),
    }


def read_difficulty(path: str | Path) -> Floats:
    """[805] of instruction_difficulty.csv or df_gamed.csv: row i belongs to instruction i."""
    table = _csv(path, ("index", "instruction_difficulty"))
    known = dict(zip(table["index"], table["instruction_difficulty"], strict=True))
    if set(known) != {str(row) for row in range(len(known))}:
        raise DataError(
            f"{path}: the column index must hold 0, 1, 2, …; fetch the file anew: "
            f"{FETCH.format('instruction_difficulty.csv')}"
        )
    return _floats([known[str(row)] for row in range(len(known))], path)


def _csv(path: str | Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """The named columns of a file; the first one, of row names, has the name "" in those that
    pandas wrote.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None
    if missing := [name for name in columns if name not in header]:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(header)}"
        )
    if torn := [number for number, row in enumerate(rows, 2) if len(row) != len(header)]:
        raise DataError(f"{path}, line {torn[0]}: not {len(header)} columns")
    return {name: [row[header.index(name)] for row in rows] for name in columns}


def _floats(texts: Sequence[str], path: str | Path) -> Floats:
    try:
        return np.array([float(text) for text in texts])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def _first(difficulty: Floats, n: int, path: str | Path) -> Floats:
    """Difficulties of n annotated items.

    They are joined by position, as the leaderboard does: a gap in the annotations shifts them.
    """
    if n > len(difficulty):
        raise DataError(
            f"{path}: knows {len(difficulty)} instructions, the annotations hold {n}; is it "
            "another data set?"
        )
    return difficulty[:n]


def published_length_controlled(
    weights: str | Path, difficulty: Floats, model: str, baseline: str = REFERENCE
) -> tuple[float, float]:
    """Length-controlled win rate of one published model against another, and its standard error
    (%), from their published weights.
    """
    table = _csv(weights, ("", *FEATURES))
    for name in (model, baseline):
        if name not in table[""]:
            raise DataError(
                f"{weights}: no weights of {name!r}; only models of the leaderboard have them. "
                "Give --df-gamed to fit them"
            )
    rows = np.stack([_floats(table[feature], weights) for feature in FEATURES], axis=1)
    _, slope, bias = rows[table[""].index(model)] - rows[table[""].index(baseline)]
    return _mean(_logistic(bias + slope * difficulty))


def fitted_length_controlled(annotations: Annotations, df_gamed: str | Path) -> tuple[float, float]:
    """Length-controlled win rate and its standard error (%), from a fit to the annotations.

    `df_gamed`: the file of that name, verbose and concise variants of the reference judged against
    itself; they tell the effect of length apart from that of quality. An L1-regularised logistic
    regression without intercept, its strength chosen by 5-fold cross-validation, as the leaderboard
    does.
    """
    table = _csv(
        df_gamed, ("preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")
    )
    not_gamed = np.array([text == "True" for text in table["not_gamed_baseline"]], dtype=np.float64)
    gamed = [
        np.tanh(_floats(table["std_delta_len"], df_gamed)),
        _floats(table["instruction_difficulty"], df_gamed),
        not_gamed,
    ]
    n = len(annotations.preference)
    difficulty = _first(read_difficulty(df_gamed), n, df_gamed)
    delta = (
        annotations.delta_length / annotations.delta_length.std(ddof=1)
        if annotations.delta_length.any()
        else annotations.delta_length
    )
    own = [np.tanh(delta), difficulty, np.ones(n)]
    features = np.concatenate([np.stack(gamed, axis=1), np.stack(own, axis=1)])
    target = np.concatenate([_floats(table["preference"], df_gamed), annotations.preference])
    weight = np.concatenate([np.where(not_gamed == 1, 1.0, GAMED_WEIGHT), np.ones(n)])
    known = ~np.isnan(target)
    _, slope, bias = _fit(features[known], target[known], weight[known])
    return _mean(_logistic(bias + slope * difficulty))


def _fit(features: Floats, target: Floats, weight: Floats) -> Floats:
    """[3] coefficients of the logistic regression of [rows, 3] features on [rows] probabilities."""
    try:
        from sklearn import linear_model, model_selection
    except ImportError:
        raise ConfigError(
            "--df-gamed fits a model: pip install 'adaptsft[eval]' (scikit-learn)"
        ) from None

    def fit(rows: NDArray[np.int64], strength: float) -> Floats:
        # A probability p is a row of label 1 and weight p, and one of label 0 and weight 1 - p.
        model: Any = linear_model.LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=123
        )
        labels = np.repeat([1, 0], len(rows))
        weights = np.concatenate([target[rows] * weight[rows], (1 - target[rows]) * weight[rows]])
        return model.fit(np.tile(features[rows], (2, 1)), labels, sample_weight=weights).coef_[0]

    def loss(rows: NDArray[np.int64], coefficients: Floats) -> float:
        predicted = np.clip(_logistic(features[rows] @ coefficients), 1e-15, 1 - 1e-15)
        return -float(
            np.mean(
                weight[rows]
                * (target[rows] * np.log(predicted) + (1 - target[rows]) * np.log1p(-predicted))
            )
        )

    rows = np.arange(len(target))
    grouped: Any = model_selection.GroupKFold(5)
    folds = list(grouped.split(features, groups=rows))  # its fold of a row is the leaderboard's
    strengths = np.logspace(-4, 4, 10)
    losses = [
        np.mean([loss(test, fit(train, strength)) for train, test in folds])
        for strength in strengths
    ]
    return fit(rows, float(strengths[int(np.argmin(losses))]))


def _logistic(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))


def evaluate(
    annotations: Annotations,
    *,
    df_gamed: str | Path | None = None,
    glm_weights: str | Path | None = None,
    difficulty: str | Path | None = None,
    baseline: str | None = None,
) -> dict[str, Any]:
    """Everything that can be said of one model:

    `win_rate(…)`, `lc_win_rate` and `lc_standard_error` (None: unavailable), and `notes`.

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
    if (
        annotations.model == annotations.reference and draws
    ):  # two runs of one objective have one name, and are not the same model
        rate, error, method = 50.0, 0.0, "the model is the reference"
    elif df_gamed:
        rate, error = fitted_length_controlled(annotations, df_gamed)
        method = f"fitted, {Path(df_gamed).name}"
        if annotations.reference != REFERENCE:
            notes.append(
                f"the gamed baselines are those of {REFERENCE}, the reference here is "
                f"{annotations.reference}"
            )
        if "gpt4_turbo" not in annotations.judge and annotations.judge != "unknown":
            notes.append(
                "the gamed baselines were judged by weighted_alpaca_eval_gpt4_turbo, these "
                f"outputs by {annotations.judge}"
            )
        if len(annotations.preference) != len(read_difficulty(df_gamed)):
            notes.append(
                "some instructions are missing: difficulties are joined by position, as the "
                "leaderboard does, and are shifted after a gap"
            )
    elif glm_weights and difficulty:
        known = _first(read_difficulty(difficulty), len(annotations.preference), difficulty)
        rate, error = published_length_controlled(
            glm_weights, known, annotations.model, baseline or annotations.reference
        )
        method = f"published weights, against {baseline or annotations.reference}"
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


def parser() -> argparse.ArgumentParser:
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


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    found = [a for a in read_annotations(options.annotations) if options.model in (None, a.model)]
    if not found:
        raise DataError(f"{options.annotations}: holds no annotations of {options.model!r}")
    sources = {
        key: getattr(options, key) for key in ("df_gamed", "glm_weights", "difficulty", "baseline")
    }
    results = [evaluate(annotations, **sources) for annotations in found]
    if options.json:
        for result in results:
            print(json.dumps(result))
        return 0
    width = max(len("model"), *(len(result["model"]) for result in results))
    print(f"{'model':{width}}  {'N':>5}  {'WR':>6}  {'SE':>5}  {'LC':>6}  {'SE':>5}")
    for result in results:
        lc = (
            f"{'n/a':>6}  {'n/a':>5}"
            if result["lc_win_rate"] is None
            else f"{result['lc_win_rate']:6.2f}  {result['lc_standard_error']:5.2f}"
        )
        print(
            f"{result['model']:{width}}  {result['n_total']:5d}  {result['win_rate']:6.2f}  "
            f"{result['standard_error']:5.2f}  {lc}"
        )
    print(
        f"reference: {', '.join(sorted({r['reference'] for r in results}))}; judge: "
        f"{', '.join(sorted({r['judge'] for r in results}))}"
    )
    noted: dict[str, list[str]] = {}
    for result in results:
        for note in result["notes"]:
            noted.setdefault(note, []).append(result["model"])
    for note, models in noted.items():
        print(f"{', '.join(models) if len(models) <= 3 else f'{len(models)} models'}: {note}")
    return 0
