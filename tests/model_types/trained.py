"""One model type through `train`, as a user runs it: on one rank and on two, packed and padded,
with the routers' loss and without it, killed and resumed, with packs that ranks share; and what
transformers makes of the first step and of final/."""

import copy
import json
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer

from adaptsft.config.schema import Config, get
from adaptsft.data.sampler import BatchSampler
from adaptsft.data.tokenized import open_data
from adaptsft.distributed.ranks import process_group
from adaptsft.model.__main__ import ON_GPUS, TRAINED
from adaptsft.model.supported import exact_modes, is_exact, variants_of, verified
from adaptsft.train import train
from tests.distributed.two_ranks import on_two_ranks, train_lives
from tests.model import document_kernels
from tests.model_types.measure import (
    EXACT,
    TRACEBACK,
    class_of,
    figure,
    plain,
    routers_of,
    shortened,
    with_router_loss,
    write_noisy_model,
)
from tests.model_types.variants import config_of, variants
from tests.runs import metrics_of, small_config, write_data

BAR = 1e-6  # relative, fp32: of losses and norms, which average the rounding of their elements
# Random weights of Gemma 4 amplify rounding, as the columns packed and bf16 show too: the norm of
# the gradient by another attention kernel is off by 3e-7, 3e-5 and 4e-4 in the first three steps
AMPLIFIED, AMPLIFIED_BAR = {"gemma4_text", "gemma4_unified_text"}, 1e-3
KILLED = -signal.SIGKILL
STEPS = 3
SETTINGS = {
    "objective__name": "nll_then_killed",
    "train__max_steps": STEPS,
    "checkpoint__every": 1,
    "train__global_batch_size": 6,  # all examples in each step
    "train__lr": 1e-3,
    "train__eps": 1e-4,  # a first step of AdamW is otherwise the gradient's sign, of noise as well
    "train__warmup_ratio": 0.0,
    "data__loss_on": "all",
    "data__max_length": 160,
}
ONE_STEP = {"train.max_steps": 1, "checkpoint.every": 0}


# without its kernels, which need a GPU, a step of its recurrence takes minutes
SLOW = {"kimi_linear"}


def trained_variants() -> dict[str, str]:
    """Of every model type that is trained, the first variant that is: {name: type}."""
    first: dict[str, str] = {}
    for name, row in sorted(verified()["variants"].items(), key=lambda item: ":" in item[0]):
        if any(is_exact(row, mode) for mode in exact_modes(variants_of(row["model_type"]))):
            first.setdefault(row["model_type"], name)
    return {name: model_type for model_type, name in first.items() if model_type not in SLOW}


def measure_trained(name: str, folder: Path) -> dict[str, float | str]:
    """Relative errors, or the reason why there is none. first_step: loss and gradient norm of the
    first step of every way on one rank and on two, against transformers; two_ranks: those of every
    step on two ranks against one; resumed: weights and metrics of two ranks that were killed in
    step 2 and started again, 0 if they are those of the run that was not, to the bit; final: the
    loss of final/ of two ranks, loaded by transformers, against the last held-out loss of the run;
    context_parallel: two ranks that share packs, against one, and the first step as well. Where
    packed, varlen: one rank with the attention operator of GPUs, and graphs: with layers that are
    traced as one graph each, too, as GPUs compile them."""
    lives = Lives(name, folder)
    try:
        lives.run()
    except Exception as error:
        print(error)
        why = f"{TRACEBACK}: {type(error).__name__}: {error}".split("\n")[0][:300]
        return dict.fromkeys(TRAINED, why)
    row = {
        "first_step": figure(lives.first_step, folder),
        "two_ranks": figure(lambda: max(map(lives.two_ranks, lives.ways)), folder),
        "resumed": figure(lives.resumed, folder, 0.0),
        "final": figure(lives.final, folder),
        "context_parallel": lives.refused or figure(lives.context_parallel, folder),
    }
    if "packed" in lives.modes:
        limit = AMPLIFIED_BAR if lives.model_type in AMPLIFIED else EXACT
        row |= {key: figure(partial(lives.as_on_a_gpu, key), folder, limit) for key in ON_GPUS}
    return row


class Lives:
    """The runs of one variant, in a folder of their own."""

    def __init__(self, name: str, folder: Path):
        model_type, settings = variants()[name]
        self.model_type = model_type
        self.folder, self.model = folder, folder / "model"
        write_noisy_model(self.model, without_chance(config_of(model_type, settings)))
        data = write_data(folder / "data.jsonl", SETTINGS["train__global_batch_size"])
        self.base = small_config(folder, self.model, **SETTINGS)
        good = exact_modes(variants_of(model_type))
        self.modes = [mode for mode in good if mode != "eager"] or good
        self.has_loss = "router" in verified()["variants"][name]
        # {way: its keys}; the first one is killed, resumed, and shared out as well
        self.ways: dict[str, dict[str, Any]] = {}
        for mode in self.modes:
            keys: dict[str, Any] = {"data.packing": mode == "packed"}
            if mode == "eager":
                keys["model.attention"] = "eager"
            for weight in (1.0, 0.0) if self.has_loss else (None,):
                own = {} if weight is None else {"train.router_aux_loss": weight}
                steps = ONE_STEP if self.ways else {"data.validation_path": str(data)}
                self.ways[f"{mode}-{'off' if weight == 0 else 'on'}"] = keys | own | steps
        self.main = next(iter(self.ways))
        self.refused = ""
        self.documents = self._documents()

    def config(self, run: str, way: str, context_parallel: int = 1) -> Config:
        """Of the run of that name; parsed once, which takes longer than the run."""
        config = copy.deepcopy(self.base)
        config.run_dir = str(self.folder / run)
        config.train.context_parallel = context_parallel
        for name, value in self.ways[way].items():
            *parts, key = name.split(".")
            setattr(get(config, ".".join(parts)), key, value)
        return config

    def _documents(self) -> list[Tensor]:
        config = self.config("data", self.main)
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        data, _ = open_data(config.data, tokenizer, 0, log=lambda line: None)
        calls = BatchSampler(data, config, 2).micro_batches(0, 0)
        self.calls_to_the_second_step = len(calls) + 1
        return [torch.from_numpy(data.example(i)[0]) for i in range(len(data))]

    def run(self) -> None:
        for way in self.ways:
            train(self.config(f"{way}-1", way))
        lives = [(self.config(f"{way}-2", way), 0) for way in self.ways]
        lives += [(self.config("shared", self.main, context_parallel=2), 0)]
        killed = self.config("killed", self.main)
        codes = self._launch([*lives, (killed, self.calls_to_the_second_step)])
        assert KILLED in codes, codes
        saved = sorted(path.name for path in (self.folder / "killed" / "checkpoints").iterdir())
        assert "step_00000001" in saved and "step_00000002" not in saved, saved
        codes = self._launch([(killed, 0)])
        assert codes == [0, 0], codes
        if (why := self.folder / "shared.refused").is_file():
            reason = why.read_text().removeprefix("train.context_parallel: ")
            self.refused = shortened(reason.replace(str(self.model), ""))

    def _launch(self, lives: list[tuple[Config, int]]) -> list[int]:
        codes, printed = on_two_ranks(train_lives, lives, log=self.folder / "log")
        for path in self.folder.glob("*.refused"):
            assert path.stem == "shared", f"{path.stem}: {path.read_text()}"
        assert codes == [0, 0] or KILLED in codes, printed[-1500:]
        return codes

    def metrics(self, run: str) -> list[dict[str, Any]]:
        return metrics_of(self.config(run, self.main))

    def reference(self, folder: Path) -> Any:
        return class_of(AutoConfig.from_pretrained(folder)).from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
        )

    def expected(self) -> dict[bool, tuple[float, float]]:
        """By transformers: loss and gradient norm, without the routers' loss and with it."""
        model = self.reference(self.model)
        loss, gradients = plain(model, self.documents)
        found = {False: (loss, norm_of(gradients))}
        if self.has_loss:
            with process_group("cpu"):
                routers = routers_of(self.model, self.modes[0])
            _, gradients = with_router_loss(model, self.documents, routers)
            found[True] = (loss, norm_of(gradients))  # metrics give the objective's loss alone
        return found

    def first_step(self) -> float:
        expected = self.expected()
        return max(
            off(self.metrics(f"{way}-{ranks}")[0], expected[self._with_router_loss(way)])
            for way in self.ways
            for ranks in (1, 2)
        )

    def _with_router_loss(self, way: str) -> bool:
        return self.has_loss and way.endswith("-on")

    def two_ranks(self, way: str) -> float:
        return self._apart(f"{way}-2", f"{way}-1")

    def context_parallel(self) -> float:
        return self._apart("shared", f"{self.main}-1")

    def as_on_a_gpu(self, run: str) -> float:
        config = self.config(run, self.main)
        config.checkpoint.every, config.train.compile = 0, "true" if run == "graphs" else "false"
        with pytest.MonkeyPatch.context() as monkeypatch:
            document_kernels.use("varlen", monkeypatch, "eager")
            train(config)
            # tiny hybrids, which are refused beside context_parallel, may be all recurrent
            assert document_kernels.calls["forward"] or self.refused, "no call of the operator"
        return self._apart(run, f"{self.main}-1")

    def _apart(self, run: str, other: str) -> float:
        both = zip(self.metrics(run), self.metrics(other), strict=True)
        return max(off(row, (same["loss"], same["grad_norm"])) for row, same in both)

    def resumed(self) -> float:
        runs = ("killed", f"{self.main}-2")
        ours, theirs = (self.metrics(run) for run in runs)
        assert ours == theirs and len(ours) == STEPS
        ours, theirs = (
            {
                k: v
                for file in sorted(final.glob("*.safetensors"))
                for k, v in load_file(file).items()
            }
            for final in (self.folder / run / "final" for run in runs)
        )
        assert ours.keys() == theirs.keys()
        return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)

    def final(self) -> float:
        run = self.folder / f"{self.main}-2"
        held_out = json.loads((run / "eval.jsonl").read_text().splitlines()[-1])
        assert held_out["step"] == STEPS
        with torch.no_grad():
            losses = log_p(self.reference(run / "final"), self.documents)
        moved = abs(held_out["nll"] / self.metrics(run.name)[0]["loss"] - 1)
        assert moved > 1e-3, f"training has moved the loss by {moved:.1e} only"
        return abs(held_out["nll"] / losses - 1)


def without_chance(config: Any) -> Any:
    """A configuration whose model draws nothing in training: ranks draw their own."""
    for part in (config, config.get_text_config()):
        for name in list(vars(part)):
            if ("drop" in name or "jitter" in name) and isinstance(getattr(part, name), float):
                setattr(part, name, 0.0)
    return config


def norm_of(gradients: dict[str, Tensor]) -> float:
    return sum(float(g.double().square().sum()) for g in gradients.values()) ** 0.5


def log_p(model: Any, documents: list[Tensor]) -> float:
    """The loss of documents by transformers, one at a time."""
    total = 0.0
    for document in documents:
        logits = model.eval()(input_ids=document[None], use_cache=False).logits[0, :-1]
        total -= float(logits.float().log_softmax(-1).gather(1, document[1:, None]).double().sum())
    return total / sum(len(document) - 1 for document in documents)


def off(row: dict[str, Any], expected: tuple[float, float]) -> float:
    """The larger of the relative errors of loss and gradient norm of a step."""
    pairs = zip((row["loss"], row["grad_norm"]), expected, strict=True)
    return max(abs(ours - theirs) / theirs for ours, theirs in pairs)
