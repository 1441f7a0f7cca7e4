"""The examples for other frameworks train in them; each is skipped where its framework is absent
(docs/api.md says what they were run with)."""

import importlib
import json

import pytest
import torch

from adaptsft import AdaptiveObjective
from tests.conftest import REPO
from tests.runs import write_data

STEPS = 4


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "examples"))


def losses_by_hand(logits, labels, alpha):
    """log p of the targets, and the weight p^alpha that f_alpha gives their gradients."""
    mask = labels != -100
    logps = logits[mask].log_softmax(-1).gather(-1, labels[mask][:, None]).squeeze(-1)
    return logps, (logps.exp() ** alpha).detach()


def test_torchtitan_learns_by_the_objective_in_chunks():
    """The loss alone, in torchtitan's chunks and with its container of optimizers: its Trainer and
    its attention (flex, whose backward needs a GPU) do not run on a CPU."""
    pytest.importorskip("torchtitan")
    ours = importlib.import_module("torchtitan_loss")
    torch.manual_seed(0)
    body, head = torch.nn.Linear(8, 8), torch.nn.Linear(8, 32, bias=False)
    other = torch.nn.Linear(8, 32, bias=False)
    other.load_state_dict(head.state_dict())
    chunked = ours.ChunkedLossWrapper.Config(num_chunks=2, loss_fn=ours.AdaptiveLoss.Config())
    loss_fn = chunked.build(compile_config=None)
    loss_fn.set_lm_head(head)
    optimizer = torch.optim.SGD([*body.parameters(), *head.parameters()], lr=0.5)
    loss_fn.loss_fn.objective = AdaptiveObjective("linear", total_steps=STEPS, optimizer=optimizer)
    alphas = []
    for _ in range(STEPS):
        hidden, labels = body(torch.randn(2, 6, 8)), torch.randint(0, 32, (2, 6))
        labels[:, 3:] = -100  # the second chunk has no targets
        n = (labels != -100).sum()
        optimizer.zero_grad()
        loss, _ = loss_fn(hidden, labels, n)
        loss.backward()
        alpha = float(loss_fn.loss_fn.objective.moved()["alpha"])
        alphas.append(alpha)
        other.load_state_dict(head.state_dict())
        other.zero_grad()
        logps, weight = losses_by_hand(other(hidden.detach()), labels, alpha)
        (-(weight * logps).sum() / n).backward()
        torch.testing.assert_close(head.weight.grad, other.weight.grad)
        optimizer.step()
        loss_fn.loss_fn.objective.step()
    assert alphas == sorted(alphas) and alphas[-1] > alphas[0]
    with torch.no_grad():
        nll, _ = loss_fn(hidden.detach(), labels, n)
        logps, _ = losses_by_hand(head(hidden), labels, 0.0)
    torch.testing.assert_close(nll, -logps.mean())


def test_ms_swift_trains_by_the_objective(tiny_model, tmp_path, monkeypatch):
    swift = pytest.importorskip("swift")
    rows = map(json.loads, write_data(tmp_path / "data.jsonl", 40).read_text().splitlines())
    path = tmp_path / "messages.jsonl"
    with path.open("w") as file:
        for row in rows:
            turns = [("user", row["prompt"]), ("assistant", row["completion"])]
            messages = [{"role": role, "content": text} for role, text in turns]
            file.write(json.dumps({"messages": messages}) + "\n")
    arguments = swift.SftArguments(
        model=str(tiny_model()),
        model_type="llama",
        template="default",
        dataset=[str(path)],
        external_plugins=[str(REPO / "examples" / "ms_swift_loss.py")],
        loss_type="adaptive",
        callbacks=["adaptive"],
        tuner_type="full",
        torch_dtype="float32",
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        output_dir=str(tmp_path / "run"),
        report_to=[],
        dataloader_num_workers=0,
        split_dataset_ratio=0.0,
        use_hf=True,
    )
    callback = importlib.import_module("swift.callbacks").callbacks_map["adaptive"]
    made = []
    first = callback.on_train_begin

    def begin(self, *given, **named):
        first(self, *given, **named)
        made.append(self.objective)

    monkeypatch.setattr(callback, "on_train_begin", begin)
    swift.sft_main(arguments)
    (checkpoint,) = (tmp_path / "run").glob("*/checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    log = [line for line in state["log_history"] if "alpha" in line]
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert log[-1]["alpha"] > log[0]["alpha"]
    saved = state["stateful_callbacks"]["AdaptiveCallback"]["attributes"]["objective"]
    assert saved["steps_done"] == STEPS
    # the trainer's loss is the objective's of that step
    assert log[-1]["loss"] == pytest.approx(made[0].metrics()["loss"], rel=1e-4)
