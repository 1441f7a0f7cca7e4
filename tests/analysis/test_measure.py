"""The figures of a diagnosis are those of a plain forward, for any split of the tokens."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adaptsft.analysis.measure import draw_sample
from adaptsft.config.load import save_config
from adaptsft.data.tokenized import TokenizedData
from adaptsft.diagnose import Options, diagnose
from tests.analysis.diagnosed import ALL, config_of, data_of, diagnose_on_two_ranks, stats_of


def plain_forward(
    model: Path, data: TokenizedData, stored: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """fp64 log p over the vocabulary before each target token, [tokens, V], of every example, by
    transformers alone. `stored`: what the weights are rounded to before."""
    # eager: transformers 5.17 gives gemma2 SDPA, which leaves the soft cap of its attention out
    reference = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    for parameter in reference.parameters():
        parameter.data = parameter.data.to(stored).double()
    found = []
    for example in range(len(data)):
        ids, mask = data.example(example)
        with torch.no_grad():
            logits = reference(torch.from_numpy(ids)[None]).logits[0]
        found.append(logits.log_softmax(1)[np.flatnonzero(mask) - 1])
    return found


@pytest.mark.parametrize("case", ["trained", "gemma2", "bf16_masters"])
def test_figures_are_those_of_a_plain_forward(folder, tmp_path, tiny_model, case):
    """gemma2: a soft cap on the logits, far from linear for weights as large as these.
    bf16_masters: the weights that are trained."""
    model = (
        tiny_model("gemma2", initializer_range=0.5)
        if case == "gemma2"
        else folder / "known" / "final"
    )
    rounded = case == "bf16_masters"
    config = config_of(folder, model, model__param_dtype="bf16" if rounded else "fp32")
    out = folder / "run" / "diagnosis"
    if case != "trained":
        report = diagnose(dataclasses.replace(ALL, out=str(out := tmp_path)), config)
        assert ("weights rounded to bf16" in report) == rounded
    data, _ = data_of(config)
    distributions = plain_forward(model, data, torch.bfloat16 if rounded else torch.float64)
    content = stats_of(out)
    tokens = [torch.from_numpy(ids[mask]) for ids, mask in map(data.example, range(len(data)))]
    logp = [
        distribution.gather(1, target[:, None]).squeeze(1)
        for distribution, target in zip(distributions, tokens, strict=True)
    ]
    every, target = torch.cat(distributions), torch.cat(tokens)[:, None]
    expected = {"logp": torch.cat(logp), "entropy": -(every.exp() * every).sum(1)}
    expected |= {"collision": every.exp().square().sum(1), "top_logp": every.amax(1)}
    top = every.topk(20, dim=1).values.log_softmax(1)
    expected["top_entropy"] = -(top.exp() * top).sum(1)
    expected["mass"] = (every.exp() * (every <= every.gather(1, target))).sum(1)
    found = load_file(out / "base_tokens.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values.float(), rtol=1e-4, atol=1e-5)
    for number, name in enumerate(data.names):
        members = np.flatnonzero(data.source == number)
        every = torch.cat([distributions[i] for i in members])
        target = torch.cat([tokens[i] for i in members])
        own, (top, likeliest) = every.gather(1, target[:, None]).squeeze(1), every.max(1)
        p, confidence, right = own.exp(), top.exp(), likeliest == target
        source = content["sources"][name]
        expected = {
            "tokens": len(p),
            "mean_p": p.mean(),
            "nll": -own.mean(),
            "entropy": -(every.exp() * every).sum(1).mean(),
            "below_0.2": (p < 0.2).double().mean(),
            "above_0.5": (p > 0.5).double().mean(),
            "above_0.55": (p > 0.55).double().mean(),
            "top1": right.double().mean(),
            "conflict": (~right & (confidence > 0.5)).double().mean(),
            "sequence_nll": np.median([-logp[i].mean() for i in members]),
            "overconfidence": (confidence - right.double()).mean(),
        }
        for key, value in expected.items():
            assert source[key] == pytest.approx(float(value), rel=2e-5, abs=1e-6), (name, key)
        bucket = (confidence * 15).long()
        gaps = [(confidence - right.double())[bucket == b].sum().abs() for b in range(15)]
        assert source["ece"] == pytest.approx(float(sum(gaps)) / len(p), rel=2e-5)
        below, above = p.sort().values[[(len(p) - 1) // 2, len(p) // 2]].tolist()
        assert 0.99 * below < source["quantiles"]["0.5"] < above * 1.01, (
            "the median, to a step of the histogram"
        )
        assert sum(source["histogram"]) == sum(source["fine_histogram"]["counts"]) == len(p)
        assert source["mean_p_interval"] == [source["mean_p"]] * 2, "every example was measured"
    if case == "trained":
        assert 0.1 < content["sources"]["sums"]["top1"] < 0.95, (
            "the comparison should see likely and unlikely targets"
        )


def test_any_split_of_the_tokens_gives_the_same_files(folder, tmp_path):
    """One rank with packs, one with several padded rows at a time, two ranks."""
    diagnose(
        dataclasses.replace(ALL, out=str(tmp_path / "rows")),
        config_of(folder, data__packing=False, train__micro_batch_size=4),
    )
    save_config(config_of(folder), tmp_path / "config.yaml")
    arguments = [str(tmp_path / "config.yaml"), "sample=all", "per_token=true"]
    printed = diagnose_on_two_ranks([*arguments, f"out={tmp_path / 'ranks'}"], tmp_path)
    assert printed.count("# Diagnosis of") == 1
    whole = stats_of(folder / "run" / "diagnosis")["sources"]
    for out in (tmp_path / "rows", tmp_path / "ranks"):
        for name, source in stats_of(out)["sources"].items():
            for key in ("tokens", "below_0.2", "above_0.5", "top1", "conflict"):
                assert source[key] == whole[name][key], (out, key)
            for key in ("mean_p", "nll", "entropy", "ece", "sequence_nll"):
                assert source[key] == pytest.approx(whole[name][key], rel=1e-5), (out, key)
        files = (at / "base_tokens.safetensors" for at in (out, folder / "run" / "diagnosis"))
        found, expected = map(load_file, files)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_sample_is_part_of_each_source_and_says_how_far_it_may_be_off(folder, tmp_path):
    report = diagnose(Options(sample=6, out=str(tmp_path)), config_of(folder))
    sampled = stats_of(tmp_path)["sources"]
    whole = stats_of(folder / "run" / "diagnosis")["sources"]
    for name in whole:
        assert sampled[name]["measured"] == 6 < sampled[name]["examples"] == whole[name]["examples"]
        low, high = sampled[name]["mean_p_interval"]
        assert low < sampled[name]["mean_p"] < high
        assert low <= whole[name]["mean_p"] <= high, "for this seed"
    assert f"[{sampled['sums']['mean_p_interval'][0]:.3f}, " in report
    assert "6 of 24" in report and "`sample=" in report
    assert not (tmp_path / "base_tokens.safetensors").exists()
    data, _ = data_of(config_of(folder))
    ours = draw_sample(data, 6, seed=0)
    assert data.target_tokens[ours].sum() == sum(source["tokens"] for source in sampled.values()), (
        "drawn by seed and source alone"
    )
    assert len(set(ours)) == 12 and set(ours) != set(draw_sample(data, 6, seed=1))
