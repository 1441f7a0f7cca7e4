"""Trains a little on two gloo ranks, with tasks evaluated in between and without; generates."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from adaptsft.config.schema import EvalConfig
from adaptsft.data.loader import BatchLoader
from adaptsft.data.stop import TurnEnd
from adaptsft.data.training_data import TrainingData
from adaptsft.distributed.ranks import (
    device_mesh,
    process_group,
    rank,
)
from adaptsft.errors import ConfigError
from adaptsft.evals import in_training
from adaptsft.model.build import build_model
from adaptsft.model.export import export
from adaptsft.model.pretrained import load_pretrained
from adaptsft.objectives.build import NLL
from adaptsft.training.optim import build_optimizer
from tests.evals.pipeline import evals
from tests.runs import flatten, small_config

SETTINGS = {
    "--template": "plain",
    "--tasks": "openbookqa",
    "--limit": 9,
    "--max-tokens": 6,
    "--batch-size": 2,
    "--temperature": 1,
    "--samples": 2,
}
GENERATE = [str(part) for pair in SETTINGS.items() for part in pair]


class Beats:
    count = 0

    def __call__(self) -> None:
        self.count += 1


def main(folder: Path, model_folder: Path, data_dir: Path) -> None:
    config = small_config(folder, model_folder, train__global_batch_size=4)
    beats, shown = Beats(), {}
    with process_group("cpu") as device:
        pretrained = load_pretrained(config.model)
        tokenizer = pretrained.tokenizer
        data = TrainingData(config, pretrained.tokenizer, None)
        settings = EvalConfig(data_dir=str(data_dir), limit=5, max_tokens=8)

        def prepared(*names: str, **settings_: int) -> list[in_training.HeldOutTask]:
            asked = replace(settings, tasks=[*names], **settings_)
            return in_training.prepare(asked, pretrained.tokenizer, config.data, config.seed)

        with suppress(ConfigError):
            prepared("humaneval")
            raise AssertionError("programs are not run in training")
        tasks = [*prepared("openbookqa"), *prepared("figfont", samples=3)]
        for name in ("plain", "evaluated"):
            torch.manual_seed(7)
            model = build_model(
                config.model, config.train, pretrained, device_mesh(device, 1), device
            )
            optimizer = build_optimizer(model, config.train)
            loader = BatchLoader(data, config, 0, model.attention_backend == "sdpa", device)
            for step in range(2):
                if name == "evaluated":
                    found = in_training.evaluate(
                        model, pretrained.tokenizer, tasks, batch_size=2, beat=beats
                    )
                for batch in loader.load(step):
                    loss, _, _ = model.token_loss(
                        batch, NLL, None, 1.0 / data.sampler.target_tokens(step)
                    )
                    loss.backward()
                optimizer.step()
                optimizer.zero_grad()
            loader.pool.shutdown()
            state = flatten(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict()["state"]}
            ) | {"random": torch.get_rng_state()}
            assert model.training
            assert model.config._attn_implementation.startswith("documents_")
            if rank() == 0:
                torch.save(state, folder / f"{name}.pt")
        found = in_training.evaluate(model, pretrained.tokenizer, tasks, batch_size=2, beat=beats)
        shown = {
            "metrics": found,
            "beats": beats.count,
            "prompts": [[tokenizer.decode(prompt) for prompt in task.prompts] for task in tasks],
            "seeds": [task.seeds for task in tasks],
        }
        with in_training.generating(model):
            shown["outputs"] = [
                [output.text for output in in_training.answer(model, tokenizer, task, 2, beats)]
                for task in tasks
            ]
        export(model, pretrained, folder / "exported", "fp32", TurnEnd())
        if rank() == 0:
            (folder / "found.json").write_text(json.dumps(shown))
    where = ["--model", model_folder, "--data-dir", data_dir, "--out", folder / "out"]
    assert evals("generate", *where, *GENERATE) == 0
