"""One process of train_step.py: trains candidates one after another, and appends what it measured
to results.jsonl in their folder.

Its one argument is a Setting in JSON.
"""

import json
import shutil
import sys
import traceback
from pathlib import Path
from statistics import mean
from typing import Any

from train_step_clock import Clock, gemm_tflops  # pyrefly: ignore[missing-import]
from train_step_data import overrides, prepare  # pyrefly: ignore[missing-import]
from train_step_settings import (  # pyrefly: ignore[missing-import]
    CANDIDATES,
    PROFILED,
    WARM_UP,
    Setting,
)

import adaptsft.train as trainer
from adaptsft.config.resolve import load_config


def run_ours(name: str, setting: Setting, trace: Path | None) -> dict[str, Any]:
    """`adaptsft.train` itself; its hook into the loop is where a step's metrics are recorded."""
    clock = Clock(setting.device, setting.steps, trace)
    record = trainer.Metrics.record

    def record_and_tick(*call: Any, **host: Any) -> None:
        record(*call, **host)
        clock.tick()

    trainer.export = lambda *call: None  # type: ignore[assignment]  # files are no part of a step
    trainer.Checkpointer.save = lambda *call: None  # type: ignore[method-assign]
    trainer.Metrics.record = record_and_tick  # type: ignore[method-assign]
    run = setting.folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    changes = [*CANDIDATES[name], f"train.max_steps={setting.steps + 2 * (trace is not None)}"]
    try:
        trainer.train(load_config(overrides(setting, changes)))
    finally:
        trainer.Metrics.record = record  # type: ignore[method-assign]
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        "tokens": sorted({int(step["all_tokens"]) for step in steps}),
        "target_tokens": sorted({int(step["tokens"]) for step in steps}),
        "nll": [step["nll"] for step in steps],
        "kept": mean(step["kept"] / step["tokens"] for step in steps[WARM_UP:]),
        **clock.result(),
    }


def run(name: str, setting: Setting, trace: Path | None) -> dict[str, Any]:
    if name == "prepare":
        return prepare(setting)
    if name == "TRL":
        from train_step_trl import run_trl  # pyrefly: ignore[missing-import]  # trl is optional

        return run_trl(setting, trace)
    return run_ours(name, setting, trace)


def main(setting: Setting) -> None:
    def report(result: dict[str, Any]) -> None:
        with (setting.folder / "results.jsonl").open("a") as file:
            file.write(json.dumps(result) + "\n")

    for number, name in enumerate(setting.names):
        last = name not in setting.names[number + 1 :]
        trace = setting.folder / f"{name}.json.gz" if name in PROFILED and last else None
        try:
            found = run(name, setting, trace)
        except Exception as error:  # the others go on
            traceback.print_exc()
            found = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        report({"name": name} | found)
        if name == "prepare" and "failed" in found:
            return
    report({"name": "gemm", "tflops": gemm_tflops(setting.device)})


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    main(Setting(**given | {"folder": Path(given["folder"])}))
