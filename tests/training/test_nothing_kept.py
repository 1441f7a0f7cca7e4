"""A run whose objective keeps no token says so, and has figures that are numbers."""

from adaptsft.train import train
from tests.runs import metrics_of, small_config


def test_a_run_that_keeps_no_token(tmp_path, tiny_model, capsys):
    config = small_config(
        tmp_path,
        tiny_model("llama", tied=False),
        objective__name="threshold",
        objective__lower=0.9999,
        objective__normalizer="kept",
        train__max_steps=4,
        data__validation_examples=4,
    )
    result = train(config)
    said = capsys.readouterr().err
    for row in (*metrics_of(config), result["held_out"]):
        assert (row["loss"], row["kept"]) == (0.0, 0) and row["tokens"] > 0 and row["nll"] > 1
    assert "nan" not in said and "loss 0.0000" in said and "kept [1, 1] 0%" in said
    for steps in (2, 4):
        assert f"has kept no token in [0.9999, 1] in the last {steps} steps" in said
    assert "warning: objective.name=threshold" in said and "widen the threshold" in said


def test_a_run_that_keeps_some_is_no_warning(tmp_path, tiny_model, capsys):
    model = tiny_model("llama", tied=False)
    train(small_config(tmp_path, model, objective__name="threshold", objective__lower=1e-6))
    assert "has kept no token" not in capsys.readouterr().err
