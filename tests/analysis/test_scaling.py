"""Communication and time of a step on paper, against the collectives that FSDP2 issues on a group
of ranks whose others are not there, and the sizes of shards against those that it makes."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig

from adaptsft.analysis.memory import Group
from adaptsft.analysis.scaling import EFFICIENCY, Cluster, estimate, ring
from adaptsft.analysis.trace import _groups, trace
from adaptsft.config.schema import Config
from adaptsft.distributed.ranks import device_mesh
from adaptsft.errors import ConfigError
from adaptsft.model.build import build_model
from adaptsft.model.fsdp import before_micro_batch, fsdp_modules, shard_model
from adaptsft.model.language import causal_lm
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.training.flops import active_parameters
from adaptsft.training.gpus import GPUS
from tests.conftest import REPO
from tests.model.batches import packed_batch
from tests.runs import small_config
from tests.test_plan import ranks

CPU = torch.device("cpu")
NO_ACTIVATIONS = (0, 0)
SHAPES = REPO / "benchmarks" / "scaling"


class Collectives(TorchDispatchMode):
    """Bytes of the buffers of collectives, as adaptsft.analysis.scaling.Traffic counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = {"gathered": 0, "reduced": 0, "all_reduced": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if "c10d::_allgather_base_" in name:
            self.bytes["gathered"] += args[0].nbytes
        elif "c10d::_reduce_scatter_base_" in name:
            self.bytes["reduced"] += args[1].nbytes
        elif "c10d::allreduce_" in name:
            self.bytes["all_reduced"] += sum(tensor.nbytes for tensor in args[0])
        elif "c10d::" in name:
            raise AssertionError(f"not counted: {name}")
        return func(*args, **(kwargs or {}))


def issued(config: Config, number: int, micro_batches: int) -> dict[str, int]:
    """In a second step, after which nothing is left of the first."""
    with ranks(number):
        pretrained = load_pretrained(config.model)
        mesh = device_mesh(CPU, config.train.replicas)
        model = build_model(config.model, config.train, pretrained, mesh, CPU)
        batch = packed_batch([[16]], pretrained.config.vocab_size)
        for _ in range(2):
            with Collectives() as found:
                for micro_batch in range(micro_batches):
                    before_micro_batch(model, config.train, micro_batch + 1 == micro_batches)
                    loss, _, _ = model.token_loss(batch, NLL, None, 1.0)
                    loss.backward()
    return found.bytes


CASES: dict[str, tuple[str, bool, int, int, dict[str, Any]]] = {
    "one micro-batch": ("llama", False, 8, 1, {}),
    "padded shards, tied": ("qwen3", True, 6, 3, {}),
    "kept whole": ("llama", False, 6, 3, {"train__reshard": "never"}),
    "reduced every time": ("llama", False, 8, 3, {"train__reduce_every_micro_batch": True}),
    "HSDP": ("qwen2", False, 8, 2, {"train__replicas": 2, "model__compute_dtype": "bf16"}),
    "HSDP, reduced every time, kept whole": (
        "llama",
        True,
        8,
        3,
        {
            "train__replicas": 2,
            "train__reduce_every_micro_batch": True,
            "train__reshard": "never",
        },
    ),
    "replicas alone": ("llama", False, 4, 2, {"train__replicas": 4}),
    "the lower half frozen": (
        "llama",
        False,
        4,
        1,
        {"model__freeze": ["layers\\.[01]\\.", "embed"]},
    ),
    "adapters": ("llama", False, 4, 2, {"model__lora__rank": 8, "model__compute_dtype": "bf16"}),
}


LONG = ("one micro-batch", "HSDP", "replicas alone", "adapters", "reduced every time")


@pytest.mark.parametrize(
    "case",
    [pytest.param(name, marks=pytest.mark.nightly if name in LONG else ()) for name in CASES],
)
def test_the_collectives_are_those_that_fsdp2_issues(tmp_path, tiny_model, case):
    arch, tied, number, micro_batches, more = CASES[case]
    model = tiny_model(arch, tied=tied, layers=3)
    config = small_config(tmp_path, model, train__device="cpu", data__max_length=16, **more)
    model_config = AutoConfig.from_pretrained(model)
    traced = trace(config, model_config, False, number, micro_batches, NO_ACTIVATIONS)
    cluster = Cluster(number, GPUS["H100"])
    step = estimate(traced.memory, traced.operations, 16, micro_batches, False, cluster)
    planned = {
        "gathered": step.gathered.buffers,
        "reduced": step.reduced.buffers,
        "all_reduced": step.all_reduced.buffers,
    }
    assert issued(config, number, micro_batches) == planned


def on_meta(name: str, **changes: Any) -> Any:
    settings = json.loads((SHAPES / f"{name}.json").read_text()) | changes
    with torch.device("meta"):
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        return causal_lm(config, "eager", torch.float32)


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [  # in all as published: Llama-3.1's and Qwen3's files, GPT-OSS's model card, which leaves the
        # embedding, .58 B, out of what is active
        ("8b", 8_030_261_248, None),
        ("32b", 32_762_123_264, None),
        ("70b", 70_553_706_496, None),
        ("30b_a3b", 30_532_122_624, 3.35e9),
        ("120b_a5b", 116_829_156_672, 5.7e9),
    ],
)
def test_shards_of_the_real_modules_over_64_ranks(name, total, active):
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == total
    assert active_parameters(model) == (
        total if active is None else pytest.approx(active, rel=0.01)
    )
    few = on_meta(name, num_hidden_layers=2)
    with ranks(64):
        planned = [Group.of(members, 64) for members in _groups(few)]
        shard_model(few, device_mesh(CPU, 1), torch.bfloat16, reshard=True)
        made = {module._get_fsdp_state()._fsdp_param_group for module in fsdp_modules(few)}
    found = [
        sum(param._sharded_param_data.numel() for param in group.fsdp_params) for group in made
    ]
    assert sorted(found) == sorted(group.local for group in planned)


def test_a_ring_through_nodes_and_one_over_replicas():
    cluster = Cluster(64, GPUS["H100"])
    within, across = ring(8e9, 8, 1, 1, cluster), ring(8e9, 64, 1, 1, cluster)
    assert within.link == 7e9 and within.network == 0
    assert within.seconds == pytest.approx(7e9 / 450e9 / EFFICIENCY, rel=0.01)
    assert across.link + across.network == 8e9 * 63 / 64
    # eight channels enter a node by eight adapters: 400 GB/s of them together are the narrowest
    assert across.network == 8e9 * 63 / 64 / 8
    assert across.seconds == pytest.approx(8e9 * 63 / 64 / 400e9 / EFFICIENCY, rel=0.02)
    replicas = ring(1e9, 8, 8, 2, cluster)  # every GPU with those of its place in the other nodes
    assert (replicas.link, replicas.network) == (0, 2e9 * 7 / 8)
    assert ring(1e9, 1, 8, 2, cluster).seconds == 0
    with pytest.raises(ConfigError, match="not a multiple of --gpus-per-node 8"):
        Cluster(12, GPUS["H100"])


def test_time_is_what_is_computed_and_what_is_not_hidden_behind_it(tmp_path, tiny_model):
    """With as many tokens as one likes all but the first gathers and the last reduction is hidden;
    with none all of it is waited for."""
    model = tiny_model("llama", tied=False)
    config = small_config(tmp_path, model, train__device="cpu")
    traced = trace(config, AutoConfig.from_pretrained(model), False, 16, 1, NO_ACTIVATIONS)
    cluster = Cluster(16, GPUS["H100"])
    none = estimate(traced.memory, traced.operations, 0, 1, False, cluster)
    assert none.hidden == 0 and none.exposed == pytest.approx(none.communication.seconds)
    many = estimate(traced.memory, traced.operations, 10**9, 1, True, cluster)
    assert many.needed == pytest.approx(10**9 * traced.operations.needed / 989e12 / 0.4)
    assert 0 < many.exposed < none.exposed
    assert many.exposed + many.hidden == pytest.approx(none.exposed)
    assert many.recomputed == pytest.approx(many.needed / 3, rel=0.3)  # all but the head
    slower = dataclasses.replace(cluster, network=cluster.network / 10)
    late = estimate(traced.memory, traced.operations, 0, 1, False, slower)
    assert late.exposed > none.exposed and late.limit.startswith("communication")
