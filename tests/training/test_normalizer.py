"""train.loss_reduction=micro_batch against the formula of the paper's code, written out by hand in
float64."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptsft.config.load import differences
from adaptsft.config.schema import Config
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.tokenized import TokenizedData, open_data
from adaptsft.errors import CheckpointError, ConfigError
from adaptsft.train import train
from adaptsft.training.resume import check_position
from tests.runs import metrics_of, saved_state, small_config

SUMMED: dict[str, Any] = {
    "train__loss_reduction": "micro_batch",
    "data__packing": False,
    "train__global_batch_size": 4,
    "seed": 1,
}
# betas[0] = 0: the first moment after step 1 is the gradient itself
ONE_STEP: dict[str, Any] = {
    "train__betas": [0.0, 0.95],
    "train__clip_norm": 0.0,
    "train__warmup_ratio": 0.0,
    "train__max_steps": 1,
}
BF16: dict[str, Any] = {"model__param_dtype": "bf16"}
LOWER = 0.003  # keeps about a fifth of the tokens, another share in each micro-batch
KEPT: dict[str, Any] = {
    "objective__name": "threshold",
    "objective__base": "neg_p",
    "objective__lower": LOWER,
    "objective__normalizer": "kept",
}


def tokenised(config: Config) -> TokenizedData:
    tokenizer: Any = AutoTokenizer.from_pretrained(config.model.path)
    return open_data(config.data, tokenizer, config.seed, log=lambda line: None)[0]


def reference_gradient(
    config: Config, ranks: int, lower: float
) -> tuple[dict[str, torch.Tensor], list[int], list[int]]:
    """Gradient of step 1, fp64, and the supervised and the kept tokens of every micro-batch.

    mean over ranks of the sum over micro-batches of (the sum of -p over kept tokens / their
    number). Each example runs alone, so that no padding takes part. Ranks take the examples in turn
    and cut theirs into micro-batches, as DistributedSampler and TensorDict.split do.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float64)
    data = tokenised(config)
    drawn = [int(i) for i in BatchSampler(data, config, ranks).examples(0)]
    target_tokens, kept = [], []
    for rank in range(ranks):
        mine = drawn[rank::ranks]
        for start in range(0, len(mine), config.train.micro_batch_size):
            p = []
            for example in mine[start : start + config.train.micro_batch_size]:
                ids, mask = (torch.from_numpy(part) for part in data.example(example))
                logits = model(input_ids=ids[None]).logits[0, :-1]
                p.append(logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0].exp()[mask[1:]])
            tokens = torch.cat(p)
            assert ((tokens.detach() - lower).abs() > 1e-4 * lower).all(), (
                "a token on the edge would be kept by one and not by the other"
            )
            above = tokens.detach() >= lower
            target_tokens.append(len(tokens))
            kept.append(int(above.sum()))
            (-(tokens * above).sum() / max(kept[-1], 1) / ranks).backward()
    return (
        {name: parameter.grad for name, parameter in model.named_parameters()},
        target_tokens,
        kept,
    )


def assert_gradient(run: Path, expected: dict[str, torch.Tensor]) -> None:
    """The first moment saved after step 1, with betas[0] = 0, is the gradient; to fp32's accuracy
    beside the largest."""
    state = saved_state(run / "checkpoints" / "step_00000001")
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        ours = state[f"optimizer/state/{name}/exp_avg"]
        assert (ours - gradient).abs().max() <= 1e-6 * largest, name


@pytest.fixture
def model(tiny_model) -> Path:
    return tiny_model("llama", tied=False)


def test_a_step_is_the_hand_written_formula_over_kept_tokens(tmp_path, model):
    config = small_config(tmp_path, model, **SUMMED | ONE_STEP | KEPT, train__micro_batch_size=2)
    train(config)
    expected, target_tokens, kept = reference_gradient(config, 1, LOWER)
    assert len(kept) == 2 and all(0 < k < n for k, n in zip(kept, target_tokens, strict=True))
    assert kept[0] / target_tokens[0] != pytest.approx(kept[1] / target_tokens[1], rel=0.02), (
        "else the two normalisers agree"
    )
    assert_gradient(Path(config.run_dir), expected)
    row = metrics_of(config)[0]
    assert (row["tokens"], row["kept"], row["micro_batches"]) == (sum(target_tokens), sum(kept), 2)
    norm = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-5)


def test_normalizer_all_averages_each_micro_batch_over_all_its_tokens(tmp_path, model):
    config = small_config(
        tmp_path, model, **SUMMED | ONE_STEP, objective__name="neg_p", train__micro_batch_size=2
    )
    train(config)
    expected, target_tokens, _ = reference_gradient(config, 1, lower=0.0)
    assert target_tokens[0] != target_tokens[1]
    assert_gradient(Path(config.run_dir), expected)


def test_a_micro_batch_without_a_kept_token_takes_part_and_adds_nothing(tmp_path, model):
    config = small_config(
        tmp_path,
        model,
        **SUMMED | ONE_STEP | KEPT | {"objective__lower": 1.0},
        train__micro_batch_size=2,
    )
    train(config)
    row = metrics_of(config)[0]
    assert (row["kept"], row["grad_norm"], row["skipped"]) == (0, 0.0, False)


def equal_lengths(path: Path) -> Path:
    """Examples of one length: letters are single tokens of the tiny models' tokenizer."""
    lines = [{"prompt": f"{chr(97 + i)}?", "completion": chr(97 + i) * 6} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_of_equal_micro_batches_it_is_the_default_gradient_times_their_number(tmp_path, model):
    equal_lengths(tmp_path / "data.jsonl")
    norms = {}
    for micro in (1, 2):
        for summed in (False, True):
            switch = SUMMED | {"train__loss_reduction": "micro_batch" if summed else "step"}
            config = small_config(
                tmp_path,
                model,
                f"{summed}-{micro}",
                **switch | ONE_STEP,
                train__micro_batch_size=micro,
            )
            train(config)
            norms[summed, micro] = metrics_of(config)[0]["grad_norm"]
        assert norms[True, micro] == pytest.approx(4 // micro * norms[False, micro], rel=1e-5), (
            micro
        )


def test_clipping_sets_in_where_the_default_does_not_reach_it(tmp_path, model):
    """Four micro-batches: gradients between a quarter of the limit and the limit are not clipped by
    default, and clipped when summed."""
    clipped = {}
    for summed in (False, True):
        settings = SUMMED | {
            "train__loss_reduction": "micro_batch" if summed else "step",
            "train__clip_norm": 5.0,
            "train__max_steps": 3,
        }
        # the model stays what it is, and its gradients
        config = small_config(tmp_path, model, str(summed), **settings, train__lr=1e-6)
        train(config)
        clipped[summed] = [row["grad_norm"] > config.train.clip_norm for row in metrics_of(config)]
    assert not any(clipped[False]) and all(clipped[True])


def test_micro_batches_are_of_examples_as_drawn_not_by_length(tmp_path, model):
    config = small_config(tmp_path, model, **SUMMED, train__micro_batch_size=2)
    data = tokenised(config)
    plans = BatchSampler(data, config, 1), BatchSampler(data, config, 2)
    drawn = [int(i) for i in plans[0].examples(0)]
    assert plans[0].micro_batches(0, 0) == [[[drawn[0]], [drawn[1]]], [[drawn[2]], [drawn[3]]]]
    assert [plans[1].micro_batches(0, rank) for rank in (0, 1)] == [
        [[[drawn[0]], [drawn[2]]]],
        [[[drawn[1]], [drawn[3]]]],
    ]
    assert sorted(drawn, key=lambda i: -data.lengths[i]) != drawn, (
        "else the order by length would be the same"
    )


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"data__packing": True}, ["data.packing=true", "data.packing=false"]),
        (
            {"objective__name": "neg_p", "objective__unit_mass": True},
            ["objective.unit_mass=true", "objective.unit_mass=false"],
        ),
        (
            {"train__micro_batch_size": 3},
            ["train.global_batch_size=4", "train.micro_batch_size=3", "weigh more"],
        ),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path, model, settings, parts):
    with pytest.raises(ConfigError) as caught:
        small_config(tmp_path, model, **SUMMED | settings)
    assert all(part in str(caught.value) for part in ["train.loss_reduction=micro_batch", *parts])


def test_a_step_that_ranks_cannot_share_evenly_is_refused(tmp_path, model):
    config = small_config(tmp_path, model, **SUMMED, train__micro_batch_size=2)
    data = tokenised(config)
    with pytest.raises(
        ConfigError,
        match=r"global_batch_size=4 is no multiple of 3 ranks x train.micro_batch_size=2",
    ):
        BatchSampler(data, config, 3)


def test_what_the_options_make_part_of_the_result_is_pinned_on_resume(tmp_path, model):
    settings = SUMMED | {"train__max_steps": 1, "train__micro_batch_size": 2}
    config = small_config(tmp_path, model, **settings)
    train(config)
    refused: list[dict[str, Any]] = [
        {"train__micro_batch_size": 1},
        {"train__loss_reduction": "step"},
    ]
    for change in refused:
        with pytest.raises(ConfigError, match=next(iter(change)).replace("__", r"\.")):
            train(small_config(tmp_path, model, **settings | change))

    data = tokenised(config)
    start = Path(config.run_dir) / "checkpoints" / "step_00000001"
    for ranks in (1, 2):
        sampler = BatchSampler(data, config, ranks)
        of_run = SimpleNamespace(sampler=sampler, steps=2, position=sampler.position)
        if ranks == 1:
            assert check_position(start, of_run) == 1
        else:
            with pytest.raises(CheckpointError, match="was trained on 1 ranks, this run has 2"):
                check_position(start, of_run)

    changes: dict[str, Any] = {
        "train__micro_batch_size": 2,
        "train__reduce_every_micro_batch": True,
    }
    assert (
        differences(small_config(tmp_path, model), small_config(tmp_path, model, **changes)) == []
    ), "without the options"
    masters = small_config(tmp_path, model, **BF16), small_config(tmp_path, model, **BF16 | changes)
    assert differences(*masters) == ["train.reduce_every_micro_batch: False -> True"]


def test_a_run_says_and_records_that_the_options_are_on(tmp_path, model, capsys):
    runs: dict[str, dict[str, Any]] = {"plain": {}, "strict": SUMMED | KEPT | BF16}
    for name, settings in runs.items():
        capsys.readouterr()
        config = small_config(tmp_path, model, name, **settings | {"train__max_steps": 1})
        train(config)
        out = capsys.readouterr().err
        row = metrics_of(config)[0]
        if name == "plain":
            assert "loss_reduction" not in out and "param_dtype" not in out
            assert "micro_batches" not in row
            continue
        reduction, dtype = (out.index(f"{key}: ") for key in ("micro_batch", "param_dtype=bf16"))
        assert reduction < dtype < out.index("model: ")
        assert "over its own kept tokens, and the gradients of 4 per rank are summed" in out
        assert row["micro_batches"] == 4
