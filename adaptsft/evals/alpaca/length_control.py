"""The length-controlled win rate: a logistic model's prediction for outputs of equal length.

Dubois et al., arXiv:2404.04475, equation 2; conventions of tatsu-lab/alpaca_eval 0.6.6,
length_controlled_v1:

    logit P(model wins) = bias + w_length * tanh((len_1 - len_2) / std)
                        + w_difficulty * difficulty of the instruction
"""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.alpaca.annotations import Annotations, Floats, mean_and_error

# columns of the published weights
FEATURES = (
    "np.tanh(std_delta_len)",
    "instruction_difficulty",
    "not_gamed_baseline.astype(float)",
)
# of an item of the gamed baselines, of which there are two; an item of the model weighs 1
GAMED_WEIGHT = 0.2 / 2
# what difficulties, weights and gamed baselines were measured against
REFERENCE = "gpt4_1106_preview"
FETCH = "hf download tatsu-lab/alpaca_eval {} --repo-type dataset"


def read_difficulty(path: str | Path) -> Floats:
    """[805] of instruction_difficulty.csv or df_gamed.csv: row i belongs to instruction i."""
    table = read_csv(path, ("index", "instruction_difficulty"))
    known = dict(zip(table["index"], table["instruction_difficulty"], strict=True))
    if set(known) != {str(row) for row in range(len(known))}:
        raise DataError(
            f"{path}: the column index must hold 0, 1, 2, …; fetch the file anew: "
            f"{FETCH.format('instruction_difficulty.csv')}"
        )
    return _floats([known[str(row)] for row in range(len(known))], path)


def read_csv(path: str | Path, columns: Sequence[str]) -> dict[str, list[str]]:
    """The named columns of a file. Row names are the column "" of a file that pandas wrote."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV ({error})") from None
    if missing := [name for name in columns if name not in header]:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(header)}"
        )
    if short := [number for number, row in enumerate(rows, 2) if len(row) != len(header)]:
        raise DataError(f"{path}, line {short[0]}: not {len(header)} columns")
    return {name: [row[header.index(name)] for row in rows] for name in columns}


def _floats(texts: Sequence[str], path: str | Path) -> Floats:
    try:
        return np.array([float(text) for text in texts])
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def first_difficulties(difficulty: Floats, n: int, path: str | Path) -> Floats:
    """Difficulties of n annotated items.

    They are joined by position, as the leaderboard does: a gap in the annotations shifts them.
    """
    if n > len(difficulty):
        raise DataError(
            f"{path}: holds {len(difficulty)} instructions, the annotations {n}; is it another "
            "data set?"
        )
    return difficulty[:n]


def published_length_controlled(
    weights: str | Path, difficulty: Floats, model: str, baseline: str = REFERENCE
) -> tuple[float, float]:
    """Length-controlled win rate of one published model against another, from their weights.

    Returns it and its standard error, in percent.
    """
    table = read_csv(weights, ("", *FEATURES))
    for name in (model, baseline):
        if name not in table[""]:
            raise DataError(
                f"{weights}: no weights of {name!r}; only models of the leaderboard have them. "
                "Give --df-gamed to fit them"
            )
    rows = np.stack([_floats(table[feature], weights) for feature in FEATURES], axis=1)
    _, slope, bias = rows[table[""].index(model)] - rows[table[""].index(baseline)]
    return mean_and_error(_logistic(bias + slope * difficulty))


def fitted_length_controlled(annotations: Annotations, df_gamed: str | Path) -> tuple[float, float]:
    """Length-controlled win rate and its standard error (%), from a fit to the annotations.

    `df_gamed`: the file of that name, verbose and concise variants of the reference judged against
    itself; they separate the effect of length from that of quality. An L1-regularised logistic
    regression without intercept, its strength chosen by 5-fold cross-validation, as the leaderboard
    does.
    """
    table = read_csv(
        df_gamed, ("preference", "std_delta_len", "instruction_difficulty", "not_gamed_baseline")
    )
    not_gamed = np.array([text == "True" for text in table["not_gamed_baseline"]], dtype=np.float64)
    gamed = [
        np.tanh(_floats(table["std_delta_len"], df_gamed)),
        _floats(table["instruction_difficulty"], df_gamed),
        not_gamed,
    ]
    n = len(annotations.preference)
    difficulty = first_difficulties(read_difficulty(df_gamed), n, df_gamed)
    delta = annotations.delta_length
    if delta.any():
        delta = delta / delta.std(ddof=1)
    own = [np.tanh(delta), difficulty, np.ones(n)]
    features = np.concatenate([np.stack(gamed, axis=1), np.stack(own, axis=1)])
    target = np.concatenate([_floats(table["preference"], df_gamed), annotations.preference])
    weight = np.concatenate([np.where(not_gamed == 1, 1.0, GAMED_WEIGHT), np.ones(n)])
    known = ~np.isnan(target)
    _, slope, bias = _fit(features[known], target[known], weight[known])
    return mean_and_error(_logistic(bias + slope * difficulty))


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
        gains = target[rows] * np.log(predicted) + (1 - target[rows]) * np.log1p(-predicted)
        return -float(np.mean(weight[rows] * gains))

    rows = np.arange(len(target))
    grouped: Any = model_selection.GroupKFold(5)
    folds = list(grouped.split(features, groups=rows))  # the leaderboard's folds
    strengths = np.logspace(-4, 4, 10)
    losses = [
        np.mean([loss(test, fit(train, strength)) for train, test in folds])
        for strength in strengths
    ]
    return fit(rows, float(strengths[int(np.argmin(losses))]))


def _logistic(x: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -x))
