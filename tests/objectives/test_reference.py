"""Objectives that read the base model, and weights that read it and not the model in training."""

import dataclasses
import math

import pytest
import torch

from adaptsft.config.schema import ObjectiveConfig
from adaptsft.errors import ConfigError
from adaptsft.objectives.base import REGISTRY
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.reference import Reference
from adaptsft_kernels import TokenOutputs
from tests.objectives.theory import draws, reference_of, state_for, tokens_from
from tests.objectives.tokens import P, shipped, state_of, tokens_at

UNFIT = {"nll", "log1mp", "cayley", "talr", "prift_prob", "prift_mass", "psft", "iw_sft"}
FIT = [
    *({"name": name} for name in sorted(shipped().keys() - UNFIT)),
    {"name": "alpha", "alpha": 0.7, "floor": 0.05},
    {"name": "concentration", "alpha": 2.0},
    {"name": "soft_threshold", "lower": 0.1},
    {"name": "threshold", "lower": 0.1, "upper": 0.8},
    {"name": "threshold", "base": "deft", "lower": 0.1},
    {"name": "cayley", "params": {"batch": 1}},
    {"name": "talr", "params": {"batch": 1}},
]


def label(config: dict) -> str:
    return " ".join(map(str, config.values()))


@pytest.mark.parametrize("config", FIT, ids=label)
def test_the_weight_is_that_of_the_base_model_and_the_loss_a_likelihood(config):
    """The weight that the objective gives to the base model's own tokens, whatever the model in
    training makes of them; and its gradient by autograd."""
    current, base = (3 * torch.randn(60, 30, generator=draws(seed)).double() for seed in (0, 1))
    targets = torch.randint(30, (60,), generator=draws(2))
    current.requires_grad_()
    tokens = tokens_from(current, targets)._replace(reference=reference_of(base, targets))
    state = state_for(config, 60)
    objective = build_objective(ObjectiveConfig(**config, reference="base"))
    loss, weight = objective(tokens, state)
    of_base = tokens_from(base, targets)
    expected = build_objective(ObjectiveConfig(**config))(of_base, state)[1]
    torch.testing.assert_close(weight, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(loss, -weight * tokens.logp)
    gradient = torch.autograd.grad(loss.sum(), current)[0]
    delta = torch.nn.functional.one_hot(targets, 30)
    torch.testing.assert_close(gradient, weight[:, None] * (current.softmax(1).detach() - delta))
    assert objective.needs == {"reference"}
    assert (objective.mask is None) == (build_objective(ObjectiveConfig(**config)).mask is None)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"name": "nll"}, "nll gives every token the weight 1"),
        ({"name": "auto"}, "nll gives every token the weight 1"),
        ({"name": "log1mp"}, "log1mp has the weight"),
        ({"name": "cayley"}, "cayley reads mean_p of the model in training"),
        ({"name": "talr"}, "talr reads sequence_nll of the model in training"),
        ({"name": "threshold", "base": "talr", "lower": 0.1}, "reads sequence_nll of the model"),
        ({"name": "psft"}, "psft reads the base model by itself"),
        ({"name": "threshold", "base": "prift_prob"}, "threshold reads the base model by itself"),
    ],
)
def test_what_means_nothing_is_refused(config, words):
    with pytest.raises(ConfigError, match=f"objective.reference=base: .*{words}"):
        build_objective(ObjectiveConfig(**config, reference="base"))


def test_the_mask_is_that_of_the_base_model():
    tokens, state = tokens_at(P), state_of(len(P), lower=0.5, upper=1.0)
    likely = torch.arange(len(P)) % 2 == 0
    reference = tokens.reference._replace(logp=torch.where(likely, 0.9, 0.2).double().log())
    reference = reference._replace(mass=torch.where(likely, 0.5, 0.49).double())
    outputs = TokenOutputs(*tokens[:6], loss=tokens.logp, weight=tokens.logp)
    for config in (
        {"name": "threshold", "lower": 0.5, "reference": "base"},
        {"name": "profit", "params": {"cut": 0.3}, "reference": "base"},
        {"name": "prift_mass"},
    ):
        objective = build_objective(ObjectiveConfig(**config))
        assert torch.equal(objective.keep(outputs, state, reference), likely), config
        weight = objective(tokens._replace(reference=reference), state)[1]
        assert torch.equal(weight, likely.double())
        exempt = dataclasses.replace(objective, exempt=torch.tensor([0]))
        marked = state._replace(exempt=torch.ones(len(P)))
        assert exempt.keep(outputs, marked, reference).all()
        assert (exempt(tokens._replace(reference=reference), marked)[1] == 1).all()


def at_reference(tokens, state=None):
    """The same tokens, with the base model where the model in training is."""
    same = Reference(
        tokens.logp,
        tokens.entropy,
        tokens.collision,
        tokens.top_logp,
        tokens.top_entropy,
        torch.ones_like(tokens.logp),
    )
    return tokens._replace(reference=same)


def test_before_the_first_step():
    """Where the model is the base model: ratios are 1, and weights that read p are the current
    model's, to the rounding of 1 - p from log p."""
    tokens, state = at_reference(tokens_at(P)), state_of(len(P), alpha=2.0, lower=0.3)
    for name in ("psft", "iw_sft"):
        assert torch.equal(REGISTRY[name](tokens, state)[1], torch.ones(len(P)).double())
    prob = REGISTRY["prift_prob"](tokens, state)
    torch.testing.assert_close(prob, REGISTRY["dft"](tokens, state), rtol=0, atol=0)
    for name in ("dft", "deft", "concentration", "idft", "eaft", "chord_phi", "threshold"):
        frozen, current = (
            build_objective(ObjectiveConfig(name=name, reference=reference))(tokens, state)
            for reference in ("base", "current")
        )
        torch.testing.assert_close(frozen, current, rtol=1e-9, atol=1e-15)


def test_psft_stops_at_its_clip_and_iw_sft_weighs_sequences():
    tokens = tokens_at(P)._replace(sequence=torch.arange(len(P)) // 5)
    ratio = (tokens.logp - tokens.reference.logp).exp()
    _, weight = build_objective(ObjectiveConfig(name="psft", params={"high": 1.0}))(tokens, None)
    torch.testing.assert_close(weight, torch.where(ratio < 2, ratio, 0.0))
    assert 0 < int((weight == 0).sum()) < len(P)
    far = tokens._replace(reference=tokens.reference._replace(logp=tokens.logp - 1000.0))
    loss, weight = REGISTRY["psft"](far, None)
    torch.testing.assert_close(loss, torch.full_like(loss, -1.28))
    assert (weight == 0).all()

    iw_sft = build_objective(ObjectiveConfig(name="iw_sft"))
    assert iw_sft.whole_batch
    _, weight = iw_sft(tokens, None)
    for number in tokens.sequence.unique():
        mine = tokens.sequence == number
        expected = (tokens.logp - tokens.reference.logp)[mine].mean().exp()
        torch.testing.assert_close(weight[mine], expected.expand(int(mine.sum())))
    assert (iw_sft(far, None)[1] - 16).abs().max() < 1e-12
    near = tokens._replace(reference=tokens.reference._replace(logp=tokens.logp + math.log(4)))
    half = build_objective(ObjectiveConfig(name="iw_sft", params={"temperature": 0.5}))
    torch.testing.assert_close(half(near, None)[1], torch.full_like(weight, 0.5))
    with pytest.raises(ValueError, match="iw_sft needs each token's sequence"):
        iw_sft(tokens._replace(sequence=None), None)
