"""The planner's figures against a real step on CPU: the real sharded model, on one rank, or as one
of four whose others are not there."""

import json
import re
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig

from adaptsft.analysis.trace import trace
from adaptsft.config.schema import Config
from adaptsft.distributed.ranks import device_mesh
from adaptsft.model.build import build_model
from adaptsft.model.fsdp import before_micro_batch, fsdp_modules
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.plan import main
from adaptsft.training.optim import build_optimizer, guarded_step
from tests.model.batches import packed_batch
from tests.runs import small_config

# found: kept within 0.3 %, peak 2 % below to 13 % above what was used
TOLERANCE = {"kept": 0.02, "peak": 0.15}


class Tracker(TorchDispatchMode):
    """Bytes of all storages made within, read anew after every operation: FSDP2 frees its gathered
    parameters by resizing them."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, weakref.ref] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, torch.Tensor):
                tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
                storage = tensor.untyped_storage()
                place = storage._cdata
                if place not in self.storages:
                    self.storages[place] = weakref.ref(
                        storage, lambda _, place=place: self.storages.pop(place, None)
                    )
        self.peak = max(self.peak, self.now())
        return out

    def now(self, without: frozenset[int] = frozenset()) -> int:
        alive = [
            (place, reference())
            for place, reference in list(self.storages.items())
            if place not in without
        ]
        return sum(storage.nbytes() for _, storage in alive if storage is not None)


@contextmanager
def ranks(number: int) -> Iterator[None]:
    """This process is rank 0 of so many: collectives return at once, sizes are those of a real
    run."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=number)
    try:
        yield
    finally:
        dist.destroy_process_group()


def measured(
    config: Config, number: int, micro_batches: int, rows: list[list[int]]
) -> dict[str, int]:
    """Bytes of the second optimizer step on rank 0."""
    found: dict[str, int] = {}
    with ranks(number), Tracker() as tracker:
        device = torch.device("cpu")
        pretrained = load_pretrained(config.model)
        model = build_model(
            config.model,
            config.train,
            pretrained,
            device_mesh(device, config.train.replicas),
            device,
        )
        optimizer = build_optimizer(model, config.train)
        batch = packed_batch(rows, pretrained.config.vocab_size)

        def step() -> None:
            for micro_batch in range(micro_batches):
                before_micro_batch(model, config.train, micro_batch + 1 == micro_batches)
                loss, _, _ = model.token_loss(batch, NLL, None, 1.0)
                loss.backward()
                del loss

        step()
        found["gradients"] = sum(
            p.grad.to_local().nbytes for p in model.parameters() if p.grad is not None
        )
        guarded_step(optimizer, 1e-3, torch.zeros(()))
        found["parameters"] = sum(p.to_local().nbytes for p in model.parameters())
        states = [
            value
            for state in optimizer.state.values()
            for key, value in state.items()
            if key != "step"
        ]
        found["moments"] = sum(value.to_local().nbytes for value in states)

        groups = [module._get_fsdp_state()._fsdp_param_group for module in fsdp_modules(model)]
        params = [p for group in groups if group is not None for p in group.fsdp_params]
        gathered = frozenset(
            tensor.untyped_storage()._cdata for p in params for tensor in p.all_gather_outputs
        )
        before = tracker.now(gathered)

        def after_decoder(*_: Any) -> None:
            # the buffer of the last all-gather is still there; the plan has it among what is
            # gathered
            pending = model._get_fsdp_state()._comm_ctx.all_gather_state
            buffer = 0 if pending is None else pending.all_gather_result.all_gather_output.nbytes
            found.setdefault("kept", tracker.now(gathered) - before - buffer)

        model.base_model.register_forward_hook(after_decoder)
        tracker.peak = 0
        step()
        guarded_step(optimizer, 1e-3, torch.zeros(()))
        found["peak"] = tracker.peak
    return found


def planned(config: Config, number: int, micro_batches: int) -> dict[str, int]:
    model_config = AutoConfig.from_pretrained(config.model.path)
    memory = trace(config, model_config, False, number, micro_batches).memory
    return {
        name: getattr(memory, name)
        for name in ("parameters", "gradients", "moments", "kept", "peak")
    }


CASES: dict[str, tuple[str, int, int, int, dict[str, Any]]] = {
    "one rank": ("llama", 1, 1, 256, {}),
    "four ranks, HSDP, frozen": (
        "gemma2",
        4,
        2,
        128,
        {"train__replicas": 2, "model__freeze": ["layers\\.0\\."]},
    ),
    "parameters outweigh activations": ("qwen2", 1, 2, 24, {"train__loss_chunk": 16}),
    "four ranks": ("qwen3", 4, 1, 512, {}),
    "reduced every time": ("llama", 4, 2, 64, {"train__reduce_every_micro_batch": True}),
    "bf16 masters": (
        "llama",
        4,
        2,
        64,
        {"model__param_dtype": "bf16", "model__compute_dtype": "bf16"},
    ),
    "adapters": ("llama", 4, 2, 128, {"model__lora__rank": 8, "model__compute_dtype": "bf16"}),
    "dora": ("qwen2", 1, 1, 128, {"model__lora__rank": 8, "model__lora__use_dora": True}),
}
# the others by `make nightly`
FEW = [("one rank", mode) for mode in ("none", "full", "per_op")]
FEW += [("four ranks, HSDP, frozen", "none"), ("adapters", "none")]
FEW += [("parameters outweigh activations", "none")]
MANY = [(name, "none") for name in CASES]
MANY += [("four ranks, HSDP, frozen", mode) for mode in ("full", "per_op")]


@pytest.mark.parametrize(
    ("case", "checkpointing"),
    [*FEW, *(pytest.param(*pair, marks=pytest.mark.nightly) for pair in MANY if pair not in FEW)],
)
def test_the_plan_is_what_a_step_takes(tmp_path, tiny_model, case, checkpointing):
    arch, number, micro_batches, length, more = CASES[case]
    model = tiny_model(arch, hidden=128, layers=4)
    settings = {
        "data__max_length": length,
        "train__micro_batch_size": 2,
        "train__activation_checkpointing": checkpointing,
    }
    config = small_config(tmp_path, model, train__device="cpu", **settings, **more)
    real = measured(config, number, micro_batches, [[length], [length]])
    plan = planned(config, number, micro_batches)
    for name in ("parameters", "gradients", "moments"):
        assert plan[name] == real[name], name
    for name in ("kept", "peak"):
        assert plan[name] == pytest.approx(real[name], rel=TOLERANCE[name]), name


def test_blocks_that_stay_whole_take_what_is_planned(tmp_path, tiny_model):
    model, found = tiny_model("qwen3", hidden=128, layers=4), []
    small = {"data__max_length": 16, "train__loss_chunk": 16, "train__device": "cpu"}
    for policy in ("always", "never"):
        config = small_config(tmp_path, model, train__reshard=policy, **small)
        real, plan = measured(config, 4, 3, [[16]])["peak"], planned(config, 4, 3)["peak"]
        assert plan == pytest.approx(real, rel=TOLERANCE["peak"]), policy
        found.append((real, plan))
    real, plan = (never - always for always, never in zip(*found, strict=True))
    assert real > 0 and plan == pytest.approx(real, rel=0.2)  # of small differences


def test_short_documents_take_little_more_or_less_than_the_full_rows_that_are_assumed(
    tmp_path, tiny_model
):
    config = small_config(
        tmp_path,
        tiny_model("llama", hidden=128, layers=4),
        data__max_length=256,
        train__device="cpu",
    )
    real, plan = measured(config, 1, 1, [[100, 30, 90, 36]]), planned(config, 1, 1)
    for name in ("kept", "peak"):
        assert plan[name] == pytest.approx(real[name], rel=0.15), name


def arguments(tmp_path: Path, model: Path, **more: Any) -> list[str]:
    config = small_config(tmp_path, model)  # writes the data
    settings = {
        "model.path": model,
        "data.path": config.data.path,
        "data.cache_dir": tmp_path / "cache",
        "run_dir": tmp_path / "run",
    }
    settings |= {"data.max_length": 128, "train.global_batch_size": 5, "train.max_steps": 6} | more
    return [f"{key}={value}" for key, value in settings.items()]


def figures(text: str) -> dict[str, float]:
    """GiB by the name that the report prints them under."""
    return {
        name.strip(): float(size)
        for name, size in re.findall(r"^  (\w[^.\n]{29}) *(\d+\.\d{3})", text, re.M)
    }


def test_the_report_needs_no_weights_and_says_steps_tokens_and_memory(tmp_path, tiny_model, capsys):
    source, model = tiny_model("qwen2"), tmp_path / "model"
    shutil.copytree(source, model, ignore=shutil.ignore_patterns("*.safetensors"))
    assert main([*arguments(tmp_path, model), "--gpus", "2", "--gpu-memory", "80"]) == 0
    out = capsys.readouterr().out
    assert (
        "steps: 6 of 5 examples, 1.50 epochs of 20" in out
        and "tokens: about" in out
        and "fits: 80 GiB" in out
    )
    assert not (tmp_path / "run").exists(), "a plan writes nothing"


def test_four_layers_of_a_7b_model_on_gpus_and_what_to_change_when_they_do_not_fit(
    tmp_path, capsys
):
    """Figures that can be checked by hand: 16 bytes per parameter over the ranks, 4 per parameter
    whole while accumulating."""
    settings = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 4,
        "num_attention_heads": 28,
    }
    settings |= {
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
        "model_type": "qwen2",
    }
    (tmp_path / "config.json").write_text(json.dumps(settings))
    command = [
        f"model.path={tmp_path}",
        "data.path=absent.jsonl",
        f"run_dir={tmp_path / 'run'}",
        "--gpus",
        "8",
        "--gpu-memory",
    ]
    assert main([*command, "16", "train.global_batch_size=64"]) == 1
    out = capsys.readouterr().out
    found = figures(out)
    block = 3584 * (2 * 3584 + 2 * 512 + 3 * 18944 + 2) + 3584 + 2 * 512
    billions = (2 * 152064 * 3584 + 4 * block + 3584) / 2**30
    assert found["parameters, fp32"] == pytest.approx(billions * 4 / 8, rel=1e-3)
    assert found["AdamW moments, fp32"] == pytest.approx(billions * 8 / 8, rel=1e-3)
    assert found["gradients, whole"] == pytest.approx(billions * 4, rel=1e-3)
    assert "train.micro_batch_size=auto: not even 1 x 2,048 tokens fits" in out
    assert "steps: unknown" in out and "no tokenizer" in out and "does not fit 16 GiB" in out
    assert (
        "train.activation_checkpointing=full" in out
        and "train.reduce_every_micro_batch=true" in out
        and "--gpus 16" in out
    )
    assert main([*command, "80", "train.global_batch_size=8"]) == 0
    out = capsys.readouterr().out
    assert "gradients, whole" not in out, "one micro-batch accumulates nothing"
    assert "train.micro_batch_size=auto: 1 x 2,048 tokens" in out
    assert "train.reshard=auto: never" in out and "reshard never" in out


def test_the_report_has_adapters_and_what_is_frozen_apart(tmp_path, tiny_model, capsys):
    model = tiny_model("llama", tied=False)
    bf16 = {"model.lora.rank": 8, "model.compute_dtype": "bf16"}
    assert main(arguments(tmp_path, model, **bf16)) == 0
    out = capsys.readouterr().out
    assert "parameters, fp32" in out and "parameters, frozen, bf16" in out
    found = re.search(r"model: llama, ([\d.]+) M parameters, ([\d.]+) M trained", out)
    assert found is not None and 0 < float(found[2]) < 0.2 * float(found[1])


def test_a_mistake_is_named_as_training_would(tmp_path, tiny_model, capsys):
    assert main([*arguments(tmp_path, tiny_model()), "train.micro_batchsize=2"]) == 2
    assert "did you mean train.micro_batch_size" in capsys.readouterr().err
    assert main([*arguments(tmp_path, tiny_model(), **{"train.replicas": 3}), "--gpus", "4"]) == 2
    assert "train.replicas=3 does not divide --gpus 4" in capsys.readouterr().err


def test_ranks_that_share_packs_have_a_part_of_the_activations(tmp_path, tiny_model, capsys):
    model, long = tiny_model("llama", tied=False), {"data.max_length": 2**16}
    four = [*arguments(tmp_path, model, **long), "--gpus", "4"]
    assert main(four) == 0
    alone = figures(capsys.readouterr().out)
    assert main([*four, "train.context_parallel=4"]) == 0
    shared = figures(capsys.readouterr().out)
    assert alone["activations kept"] > 0.1
    assert shared["activations kept"] == pytest.approx(alone["activations kept"] / 4, abs=0.002)
    assert shared["parameters, fp32"] == alone["parameters, fp32"]
    assert main([*four, "train.context_parallel=3"]) == 2
    assert "train.context_parallel=3 does not divide --gpus 4" in capsys.readouterr().err
