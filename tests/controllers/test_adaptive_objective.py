"""AdaptiveObjective in other loops: its loss however it is split, its state, its refusals."""

import copy
import functools

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from adaptsft.controllers.adaptive_objective import AdaptiveObjective
from adaptsft.errors import CheckpointError
from adaptsft.objectives.base import REGISTRY as OBJECTIVES
from adaptsft.objectives.loss import next_tokens
from adaptsft.objectives.reference import Reference
from tests.controllers.loop import Loop
from tests.kernels.reference import logits_of, random_head, relative


@pytest.mark.parametrize("name", ["auto", "neg_p", "linear", "talr", "cayley"])
def test_a_split_into_calls_changes_nothing(name):
    whole, parts = Loop(name).run(), Loop(name).run(split=2)
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_its_figures_are_those_of_the_tokens_by_hand():
    loop = Loop("alpha", total_steps=None)
    ids, targets = loop.batch(0)
    with torch.no_grad():
        logp = (loop.body(ids) @ loop.head.weight.T).log_softmax(-1)
    logp = logp.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)[targets != -100]
    found = loop.step(0)
    assert found["tokens"] == len(logp)
    assert found["nll"] == pytest.approx(float(-logp.mean()), rel=1e-6)
    assert found["mean_p"] == pytest.approx(float(logp.exp().mean()), rel=1e-6)
    assert found["alpha"] == 0 and found["loss"] == found["nll"]  # alpha's default is NLL


def needed_by(name: str, hidden: Tensor, head: Tensor, targets: Tensor) -> Reference | None:
    if "reference" not in OBJECTIVES[name].needs:
        return None
    logp = (hidden @ head.T).log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])
    each = (logp.squeeze(-1) - 0.1).detach().float()
    return Reference(*(each if field == "logp" else each.exp() for field in Reference._fields))


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name not in ("eaft", "idft")])
def test_the_loss_from_log_probabilities_is_that_of_the_head(name):
    """In value, statistics and gradient, for every objective that does not ask for more of the
    logits than a loss from log probabilities is given."""
    hidden, head, _, targets = random_head(n=24, dtype=torch.float64)
    hidden, targets = hidden.detach().view(4, 6, -1), targets.view(4, 6)
    reference = needed_by(name, hidden, head, targets)
    results = []
    for from_logps in (False, True):
        x, w = hidden.clone().requires_grad_(), head.detach().clone().requires_grad_()
        objective = AdaptiveObjective(name, device="cpu")
        if from_logps:
            log_p = (x @ w.T).log_softmax(-1)
            p = log_p.detach().exp()
            logps = log_p.gather(-1, targets.clamp(min=0)[..., None]).squeeze(-1)
            loss, tokens = objective.loss_from_logps(
                logps,
                mask=targets != -100,
                entropy=-(p * p.log()).sum(-1),
                collision=p.square().sum(-1),
                top1=logps >= log_p.amax(-1),
                reference=reference,
            )
        else:
            loss, tokens = objective.loss(x, w, targets, reference=reference)
        loss.backward()
        objective.step()
        figures = torch.tensor(list(objective.metrics().values()))
        results.append((loss.detach(), figures, x.grad, w.grad, tokens.entropy, tokens.weight))
    for one, other in zip(*results, strict=True):
        assert relative(other.double(), one.double()) < 1e-5 or torch.allclose(
            other.double(), one.double(), atol=1e-7
        )


def test_reduction_none_is_the_loss_of_each_target():
    hidden, head, _, targets = random_head(n=24)
    logps = (hidden @ head.T).log_softmax(-1).gather(-1, targets.clamp(min=0)[:, None]).squeeze(-1)
    each, tokens = AdaptiveObjective("neg_p", device="cpu").loss_from_logps(
        logps, mask=targets != -100, reduction="none"
    )
    assert torch.equal(each == 0, targets == -100)
    torch.testing.assert_close(each[targets != -100], -tokens.logp.exp())


def test_a_function_of_log_p_is_an_objective():
    own = Loop(lambda logp: (1 - (0.5 * logp).exp()) / 0.5, total_steps=None)
    named = Loop({"name": "alpha", "alpha": 0.5}, total_steps=None)
    for one, other in zip(own.run(), named.run(), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_sources_have_their_own_alpha_and_figures():
    objective = AdaptiveObjective("auto", total_steps=50, sources=["known", "new"], device="cpu")
    objective.attach(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0))
    logps = torch.tensor([[0.97] * 500, [0.01] * 500]).log().requires_grad_()
    for _ in range(40):
        objective.loss_from_logps(
            logps, collision=torch.full_like(logps, 0.9), source=torch.tensor([0, 1])
        )
        objective.step(skipped=False)
    found = objective.metrics()
    assert found["known/mean_p"] == pytest.approx(0.97) and found["new/tokens"] == 500
    assert found["known/alpha"] > found["new/alpha"] + 0.1
    assert found["new/floor"] > found["known/floor"]


@pytest.mark.parametrize("name", ["auto", "short_steps", "linear", "neg_p"])
def test_a_saved_state_continues_to_the_bit(name, tmp_path):
    whole, first = Loop(name), Loop(name)
    lines = whole.run()
    for step in range(3):
        first.step(step)
    state = {"objective": first.objective.state_dict(), "optimizer": first.optimizer.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt")  # weights_only: tensors, numbers and strings
    resumed = Loop(name)
    for part, saved in ((resumed.body, first.body), (resumed.head, first.head)):
        part.load_state_dict(saved.state_dict())
    resumed.optimizer.load_state_dict(loaded["optimizer"])
    resumed.objective.load_state_dict(loaded["objective"])
    assert resumed.run(first=3) == lines[3:]


def test_a_state_of_another_objective_is_refused():
    state = Loop("auto").objective.state_dict()
    for other, said in (
        (Loop("linear"), "objective="),
        (Loop("auto", sources=2), "sources=source 0"),
        (Loop("auto", total_steps=9), "total_steps=8"),
        (Loop("auto_rl"), "controller="),
        (Loop("auto", exempt=[3]), r"exempt=\[\]"),
    ):
        with pytest.raises(CheckpointError, match=said):
            other.objective.load_state_dict(state)


@pytest.mark.parametrize("fused", [True, False])
def test_the_learning_rate_is_scaled_in_the_step_alone(fused):
    loop = Loop("short_steps", fused=fused)
    loop.step(0)
    scale, before = float(loop.objective.lr_scale), loop.head.weight.detach().clone()
    assert scale < 0.2
    state = copy.deepcopy(loop.optimizer.state_dict())
    ids, targets = loop.batch(1)
    loss, _ = loop.objective.loss(loop.body(ids), loop.head.weight, targets)
    loss.backward()
    gradients = [parameter.grad.clone() for parameter in (loop.body.weight, loop.head.weight)]
    loop.optimizer.step()
    assert [group["lr"] for group in loop.optimizer.param_groups] == [0.1]

    by_hand = [nn.Parameter(loop.body.weight.detach().clone()), nn.Parameter(before)]
    optimizer = torch.optim.AdamW(by_hand, fused=fused)
    optimizer.load_state_dict(state)
    optimizer.param_groups[0]["lr"] = 0.1 * scale
    for parameter, gradient in zip(by_hand, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    torch.testing.assert_close(loop.head.weight, by_hand[1], rtol=1e-6, atol=1e-7)

    loop.objective.step()
    loop.objective.detach()
    loop.objective.loss(loop.body(ids), loop.head.weight, targets)
    with pytest.raises(RuntimeError, match="attach"):
        loop.objective.step()


def test_evaluation_is_not_counted_and_a_loss_that_is_not_finite_moves_nothing():
    loop, other = Loop(), Loop()
    for step in range(3):
        with torch.no_grad():
            ids, targets = loop.batch(99)
            loop.objective.loss(loop.body(ids), loop.head.weight, targets)
        assert loop.step(step) == other.step(step)
    state = loop.objective.state_dict()["tensors"]
    ids, targets = loop.batch(3)
    loop.objective.loss(loop.body(ids) * float("nan"), loop.head.weight, targets)
    with pytest.raises(RuntimeError, match="call it after step"):
        loop.objective.metrics()
    loop.optimizer.step()  # without gradients
    loop.objective.step()
    for name, value in loop.objective.tensors().items():
        assert torch.equal(value.nan_to_num(7.0), state[name].nan_to_num(7.0)), name
    assert loop.objective.steps_done == 4


def test_steps_that_were_forgotten_are_errors():
    loop = Loop()
    with pytest.raises(RuntimeError, match="without a loss"):
        loop.objective.step()
    ids, targets = loop.batch(0)
    loop.objective.loss(loop.body(ids), loop.head.weight, targets)
    with pytest.raises(RuntimeError, match="without a step of the optimizer"):
        loop.objective.step()
    alpha = loop.objective.state.alpha.clone()
    loop.objective.step(skipped=True)  # as GradScaler's
    assert torch.equal(loop.objective.state.alpha, alpha)
    for _ in range(2):
        loss, _ = loop.objective.loss(loop.body(ids), loop.head.weight, targets)
        loss.backward()
        if loop.optimizer.state:
            with pytest.raises(RuntimeError, match=r"without objective\.step"):
                loop.optimizer.step()
        else:
            loop.optimizer.step()


def test_auto_may_be_named_in_every_way():
    named = (
        ({"objective": "auto"}, "concentration"),
        ({"objective": {"name": "auto"}}, "concentration"),
        ({"controller": "auto"}, "concentration"),
        ({"objective": "auto", "controller": "linear"}, "alpha"),
        ({"objective": "linear"}, "alpha"),
        ({"objective": "nll"}, "nll"),
    )
    for given, expected in named:
        assert AdaptiveObjective(**given, total_steps=5, device="cpu").function.name == expected


def test_a_function_is_itself_whatever_its_name_and_kind():
    def auto(logp, *, k=1.0):
        return -k * logp.exp()

    for own in (auto, functools.partial(auto, k=2.0)):
        objective = AdaptiveObjective(own, device="cpu")
        assert objective.controller is None
        loss, _ = objective.loss_from_logps(torch.tensor([0.5]).log())
        assert float(loss) == pytest.approx(-1.0 if own is not auto else -0.5)


def test_a_learning_rate_that_is_not_scaled_is_the_optimizers_to_change():
    parameter = nn.Parameter(torch.ones(1))

    class Warming(torch.optim.SGD):
        def step(self, closure=None):
            self.param_groups[0]["lr"] = 7.0
            return super().step(closure)

    optimizer = Warming([parameter], lr=1.0)
    AdaptiveObjective("nll", optimizer=optimizer)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 7.0


def test_a_weight_of_zero_leaves_a_token_out_and_nothing_else():
    hidden, head, _, targets = random_head(targets=1.0)
    weight = torch.ones(len(targets))
    weight[3] = 0
    objective = AdaptiveObjective("short_steps", total_steps=5, device="cpu")
    objective.loss(hidden, head, targets, token_weight=weight)[0].backward()
    objective.attach(torch.optim.SGD([head], lr=1.0))
    objective.step(skipped=False)
    assert 0 < float(objective.lr_scale) < 1
    assert not hidden.grad[3].any() and hidden.grad[4].any()


def test_shapes_that_do_not_fit_are_refused():
    hidden, targets, head = torch.randn(2, 5, 16), torch.zeros(2, 4).long(), torch.randn(50, 16)
    objective = AdaptiveObjective("nll", device="cpu")
    with pytest.raises(ValueError, match="next_tokens"):
        objective.loss(hidden, head, targets)
    with pytest.raises(ValueError, match="mask is for"):
        objective.loss_from_logps(torch.zeros(2, 5), mask=torch.ones(2, 4))


def test_exempt_tokens_keep_nll():
    hidden, head, _, targets = random_head(n=40)
    ids = targets[targets != -100][:3].tolist()
    objective = AdaptiveObjective("neg_p", exempt=ids, device="cpu")
    _, tokens = objective.loss(hidden, head, targets)
    exempt = torch.isin(targets[targets != -100], torch.tensor(ids))
    assert (tokens.weight[exempt] == 1).all() and (tokens.weight[~exempt] < 1).all()


def test_a_sharded_weight_is_refused(tmp_path):
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        layer = nn.Linear(16, 101, bias=False)
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        hidden, _, _, targets = random_head()
        with pytest.raises(ValueError, match="in the forward of a module"):
            AdaptiveObjective("nll", device="cpu").loss(hidden, layer.weight, targets)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("num_tokens", [None, 0, torch.tensor(0)])
def test_a_batch_without_targets_is_a_loss_of_0(num_tokens):
    """As on one rank of several; the step is all ranks'."""
    hidden, head, _, targets = random_head()
    nothing = torch.full_like(targets, -100)
    for name in ("concentration", "talr", "iw_sft"):
        objective = AdaptiveObjective(name, device="cpu")
        reference = None
        if name == "iw_sft":
            reference = Reference(*(torch.zeros(len(targets)) for _ in Reference._fields))
        loss, tokens = objective.loss(
            hidden[None],
            head,
            nothing[None],
            num_tokens=num_tokens,
            reference=reference and Reference(*(x[None] for x in reference)),
        )
        loss.backward()
        assert float(loss) == 0 and len(tokens.logp) == 0
        objective.step()
        assert objective.metrics() == {"tokens": 0.0, **objective_settings(objective)}
        assert objective.state.mean_p.isfinite().all() and objective.state.mass.isfinite().all()
    assert not head.grad.any() and not hidden.grad.any()


def objective_settings(objective: AdaptiveObjective) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in objective.used.items()}


def test_under_autocast_the_head_computes_in_its_dtype():
    """Hidden states come in bf16 there, and the weights that are trained stay in fp32."""
    hidden, head, _, targets = random_head()
    objective = AdaptiveObjective("nll", device="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = objective.loss(hidden.bfloat16(), head, targets)
    loss.backward()
    expected, _ = objective.loss(hidden.bfloat16(), head.bfloat16(), targets)
    assert torch.equal(loss, expected) and head.grad.dtype == torch.float32


def test_targets_are_the_labels_shifted():
    labels = torch.tensor([[1, -100, 3], [4, 5, 6]])
    assert next_tokens(labels).tolist() == [[-100, 3, -100], [5, 6, -100]]


def test_the_loss_is_the_mean_over_the_targets_of_the_call():
    hidden, head, _, targets = random_head(dtype=torch.float64)
    loss, _ = AdaptiveObjective("nll", device="cpu").loss(hidden, head, targets)
    expected = nn.functional.cross_entropy(logits_of(hidden, head), targets)
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
