"""The same comparison on a real model, data and evaluator: the section `real` of a preset.
Trainings and evaluations are commands, one after the other, so that torchrun can start them; the
results are those of the generated families, under the family `real`."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf

from adaptsft.config.resolve import load_config
from adaptsft.errors import ConfigError, UserError, require
from benchmarks.lab.fingerprint import CODE, commit, digest, users_code
from benchmarks.lab.runs import UNTOUCHED, metrics_of, trajectories, write_result
from benchmarks.lab.settings import Lab, RealRegime

FAMILY = "real"


@dataclass(frozen=True)
class RealRun:
    folder: Path
    regime: str
    method: str
    seed: int
    model: str
    launch: list[str]
    keys: dict[str, Any]  # of the trainer, without model, data and run_dir
    settings: RealRegime

    @property
    def name(self) -> str:
        return f"{FAMILY}/{self.regime}/{self.method}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.folder / "results" / f"{self.name}.json"

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs" / self.name

    def fingerprint(self) -> str:
        """The untouched model depends on nothing that trains."""
        of, trained = self.settings, None
        if self.method != UNTOUCHED:
            trained = [self.keys, of.data, self.seed, CODE, *users_code(self.keys)]
        return digest([self.model, trained, of.evaluate, of.scores, of.metric])

    def finished(self) -> dict[str, Any] | None:
        """The result, if there is one of this very run."""
        try:
            result = json.loads(self.result.read_text())
        except (OSError, ValueError):
            return None
        return result if result["fingerprint"] == self.fingerprint() else None


def asked(lab: Lab, methods: dict[str, dict[str, Any]], folder: Path) -> list[RealRun]:
    """All runs, seed by seed; the untouched model is evaluated once. Raises ConfigError."""
    require(
        lab.real.model != "",
        "real.model is not set: the name or folder of the model that is fine-tuned",
    )
    first, runs = lab.seeds[0], []
    for seed in lab.seeds:
        for regime in lab.regimes or lab.real.regimes:
            require(
                regime in lab.real.regimes,
                f"regimes: {regime!r} is not one of real.regimes: {', '.join(lab.real.regimes)}",
            )
            settings = cast(RealRegime, lab.real.regimes[regime])
            require(
                set(settings.scores) == {"greedy", "sampled"},
                f"real.regimes.{regime}.scores: must name greedy and sampled",
            )
            for method, keys in methods.items():
                if method != UNTOUCHED or seed == first:
                    runs.append(
                        RealRun(
                            folder,
                            regime,
                            method,
                            seed,
                            lab.real.model,
                            lab.real.launch,
                            keys,
                            settings,
                        )
                    )
    return runs


def complete(missing: list[RealRun]) -> Iterator[tuple[RealRun, dict[str, Any] | UserError]]:
    """Each run with its result; the UserError of one does not stop the others."""
    for run in missing:
        try:
            yield run, execute(run)
        except UserError as error:
            yield run, error


def execute(run: RealRun) -> dict[str, Any]:
    """Train (an interrupted training goes on from its last checkpoint), evaluate, and write the
    result. Raises ConfigError where a command fails; its last lines are in the message, all of them
    in the log."""
    began, model, curves = time.perf_counter(), run.model, {}
    run.run_dir.parent.mkdir(parents=True, exist_ok=True)
    if run.method != UNTOUCHED:
        places = {"run_dir": str(run.run_dir), "seed": run.seed, "model": {"path": run.model}}
        path = Path(f"{run.run_dir}.yaml")
        path.write_text(
            OmegaConf.to_yaml(OmegaConf.merge(run.keys, {"data": run.settings.data}, places))
        )
        load_config([str(path)])
        command([*run.launch, "-m", "adaptsft.train", str(path)], Path(f"{run.run_dir}.log"))
        model, curves = str(run.run_dir), trajectories(metrics_of(run.run_dir))
    out = Path(f"{run.run_dir}.evaluation")
    shutil.rmtree(out, ignore_errors=True)
    fill = {"model": model, "out": str(out), "seed": str(run.seed)}
    command(
        [part.format(**fill) for part in run.settings.evaluate],
        Path(f"{run.run_dir}.evaluation.log"),
    )
    part = {}
    for mode, file in run.settings.scores.items():
        try:
            part[mode] = float(
                json.loads((out / file).read_text())["metrics"][run.settings.metric]["value"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{out / file}: no number at metrics.{run.settings.metric}.value ({error!r}); see "
                "real.regimes"
            ) from None
    result = {
        "family": FAMILY,
        **{name: getattr(run, name) for name in ("regime", "method", "seed")},
        **part,
        "parts": {run.regime: part},
        "curves": curves,
        "keys": {} if run.method == UNTOUCHED else run.keys,
        "seconds": round(time.perf_counter() - began, 2),
        "commit": commit(),
        "fingerprint": run.fingerprint(),
    }
    write_result(run.result, result)
    return result


def command(words: list[str], log: Path) -> None:
    words = [sys.executable if word == "python" else word for word in words]
    with log.open("a") as file:
        try:
            code = subprocess.run(words, stdout=file, stderr=subprocess.STDOUT).returncode
        except OSError as error:
            raise ConfigError(f"{words[0]}: cannot be run: {error.strerror}") from None
    if code:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-3:])
        raise ConfigError(f"{' '.join(words)}: exit code {code}; {log}:\n{last}")
