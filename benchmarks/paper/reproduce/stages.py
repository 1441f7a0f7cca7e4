"""The commands that make a table, in their order, each with the fingerprint by which it is found
done; and what they will cost."""

import dataclasses
import functools
import hashlib
import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config
from adaptsft.data.files import files_of, training_sources
from adaptsft.errors import DataError
from adaptsft.evals import samples
from adaptsft.evals.tasks import load_task
from benchmarks.lab.fingerprint import digest
from benchmarks.lab.real import command
from benchmarks.paper.reproduce.table import (
    BASE,
    FAMILIES,
    RECIPES,
    Job,
    Table,
    billions,
    hub_name,
    tasks_of,
)

PEAK = 989e12  # dense bf16 FLOP/s of an H200 (NVIDIA's data sheet)
TRAINING_MFU, DECODING_MFU = 0.4, 0.1  # assumed
# per parameter and token: forward 2, backward 4, and 2 that full activation checkpointing computes
# again
FLOPS = 8
BYTES = 12  # per parameter of a checkpoint: fp32 weights and two moments
CHARACTERS = 4  # of an answer per token, with what is recorded beside it: assumed


@dataclass(frozen=True)
class Choices:
    """What the user decides, and stages depend on."""

    gpus: int = 1
    backend: str = "hf"
    strict: bool = False
    data_dir: Path | None = None
    allow_code_exec: bool = False
    judge: tuple[str, ...] = ()  # arguments of `adaptsft.evals judge` that say who judges
    overrides: tuple[str, ...] = ()  # key=value for training
    generate: tuple[
        str, ...
    ] = ()  # further arguments of `adaptsft.evals generate`, {job} standing for its name
    tasks: Path | None = None  # folder of task files to use instead of the evaluator's own


@dataclass(frozen=True)
class Stage:
    name: str  # a path below the model's folder
    words: list[str]
    folder: Path  # of the model
    # of the command, its configuration, the data that it trains on, and the stages before that it
    # reads from
    fingerprint: str

    @property
    def mark(self) -> Path:
        return self.folder / "stages" / f"{self.name.replace('/', '.')}.json"

    def done(self) -> bool:
        try:
            return json.loads(self.mark.read_text())["fingerprint"] == self.fingerprint
        except (OSError, ValueError, KeyError):
            return False

    def run(self) -> None:
        """Raises ConfigError with the end of the command's log where it fails."""
        self.mark.parent.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        words = (
            ["python", "-m", "torch.distributed.run", *self.words[1:]]
            if self.words[0] == "torchrun"
            else self.words
        )
        command(words, self.mark.with_suffix(".log"))
        seconds = round(time.perf_counter() - began, 1)
        samples.write_json(
            self.mark,
            {
                "fingerprint": self.fingerprint,
                "command": shlex.join(self.words),
                "seconds": seconds,
            },
        )


def stages(
    name: str, table: Table, model: str, jobs: list[Job], out: Path, choices: Choices
) -> list[Stage]:
    """Diagnose, evaluate the untrained model, then train, measure, ask, judge and grade one model
    after the other."""
    folder, found = out / model, []

    def add(
        stage: str, words: list[str], reads: str = "", configured: list[str] | None = None
    ) -> str:
        config = None if configured is None else load_config(configured)
        content = [] if config is None else [dataclasses.asdict(config), contents(config)]
        found.append(Stage(stage, words, folder, digest([words, content, reads])))
        return found[-1].fingerprint

    launch = (
        ["torchrun", "--standalone", "--nproc-per-node", str(choices.gpus), "-m"]
        if choices.gpus > 1
        else ["python", "-m"]
    )
    for condition in table.conditions or [""]:
        first = next(job for job in jobs if job.condition == condition)
        place = "diagnosis" + (f"_{condition}" if condition else "")
        arguments = [*first.arguments, *choices.overrides]
        add(
            place,
            [*launch, "adaptsft.diagnose", *arguments, f"out={folder / place}"],
            "",
            arguments,
        )

    def evaluate(job: Job, run: str, reads: str) -> str:
        """Answer all tasks, and grade the answers unless a judge does."""
        which, generator = (
            "generate" if table.against else "run",
            launch if choices.backend == "hf" else ["python", "-m"],
        )
        words = [
            *generator,
            "adaptsft.evals",
            which,
            "--model",
            run,
            "--tasks",
            ",".join(task_names(table, job, choices)),
        ]
        words += ["--out", str(evaluation(folder, job)), "--backend", choices.backend]
        words += ["--template", FAMILIES[run.split("/")[0]][0]] if job.objective == BASE else []
        words += ["--tensor-parallel", str(choices.gpus)] if choices.backend == "vllm" else []
        words += ["--data-dir", str(choices.data_dir)] if choices.data_dir else []
        words += ["--allow-code-exec"] if choices.allow_code_exec and not table.against else []
        return add(
            f"{job.name}/evaluate",
            words + [part.format(job=job.name) for part in choices.generate],
            reads,
        )

    if not table.against:  # against another objective the untrained model is not judged
        evaluate(Job(model, BASE), hub_name(name, model), "")
    answered: dict[str, str] = {}  # job -> fingerprint of its answers
    for job in jobs:
        run = folder / job.name / "run"
        arguments = [
            *job.arguments,
            *strict_arguments(job, choices),
            *choices.overrides,
            f"run_dir={run}",
        ]
        trained = add(f"{job.name}/train", [*launch, "adaptsft.train", *arguments], "", arguments)
        if table.likelihood:
            likelihood = [
                *arguments,
                f"model.path={run / 'final'}",
                f"out={folder / job.name / 'likelihood'}",
            ]
            add(f"{job.name}/likelihood", [*launch, "adaptsft.diagnose", *likelihood], trained)
        answered[job.name] = evaluate(job, str(run), trained)
    for job in [job for job in jobs if table.against and job.objective != table.against]:
        reference = evaluation(folder, Job(model, table.against))
        words = [
            "python",
            "-m",
            "adaptsft.evals",
            "judge",
            str(evaluation(folder, job)),
            str(reference),
        ]
        words += [
            "--out",
            str(folder / job.name / "judge"),
            *(part.format(job=job.name) for part in choices.judge),
        ]
        add(f"{job.name}/judge", words, answered[job.name] + answered[table.against])
    return found


def contents(config: Config) -> list[str]:
    """sha256 of every file that it trains on, as far as they are here yet."""
    found = []
    for source in training_sources(config.data):
        try:
            files = [Path(name) for name in files_of(source) if Path(name).is_file()]
        except DataError:
            continue
        found += [_sha256(file, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return found


@functools.cache
def _sha256(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def evaluation(folder: Path, job: Job) -> Path:
    return folder / job.name / "evals"


def task_names(table: Table, job: Job, choices: Choices) -> list[str]:
    names = tasks_of(table, job)
    return (
        names if choices.tasks is None else [str(choices.tasks / f"{name}.yaml") for name in names]
    )


def strict_arguments(job: Job, choices: Choices) -> list[str]:
    """What --strict adds: the authors' loop, and for a threshold their mean over the tokens that it
    keeps."""
    if not choices.strict:
        return []
    masks = load_config(job.arguments).objective.name == "threshold"
    return [
        str(RECIPES / "parts" / "strict.yaml"),
        *(["objective.normalizer=kept"] if masks else []),
    ]


def estimate(table: Table, hub: str, jobs: list[Job], missing: list[Stage]) -> list[str]:
    """What the missing stages will take, and what that is computed from."""
    size = 1e9 * billions(hub)
    names = {stage.name for stage in missing}
    training = sum(f"{job.name}/train" in names for job in jobs)
    hours = training * FLOPS * size * table.examples * table.tokens / (TRAINING_MFU * PEAK) / 3600
    longest = 0
    for job in [Job(jobs[0].model, BASE), *jobs]:
        for loaded in map(
            load_task, tasks_of(table, job) if f"{job.name}/evaluate" in names else []
        ):
            longest += (
                loaded.items
                * (loaded.decoding.n if loaded.decoding.temperature else 1)
                * loaded.decoding.max_tokens
            )
    decoding = 2 * size * longest / (DECODING_MFU * PEAK) / 3600
    disk = training * (2 * BYTES + 2) * size + CHARACTERS * longest
    return [
        f"{len(missing)} commands, {training} of them trainings of {table.examples:,} examples",
        f"GPU hours (H200): about {hours:.1f} of training; at most {decoding:.1f} of answering, if "
        "every answer were as long as it may be",
        f"disk: at most {disk / 1e9:,.0f} GB; after a training its RUN/checkpoints "
        f"({2 * BYTES * size / 1e9:,.0f} GB) may be deleted",
        f"assumed: {table.tokens} tokens per example; training takes {FLOPS} FLOPs per parameter "
        f"and token, at {TRAINING_MFU:.0%} of "
        f"{PEAK / 1e12:.0f} TFLOP/s; answering 2, at {DECODING_MFU:.0%} (prompts and likelihoods "
        "are not counted); each of two checkpoints "
        f"takes {BYTES} bytes per parameter",
    ]
