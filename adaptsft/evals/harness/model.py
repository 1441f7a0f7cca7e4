"""A backend as the model that lm-eval evaluates."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from adaptsft.distributed.ranks import raise_on_all_ranks
from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.asking import ask_for_missing
from adaptsft.evals.harness.library import LM, Instance
from adaptsft.evals.protocol import Backend, Likelihood, Output, Request, Sampling
from adaptsft.evals.samples import Samples, digest, seed_of

T = TypeVar("T")


class Model(LM):
    """lm-eval sees one rank: on every rank it builds all requests and scores all answers.

    Only the answering is split, here. (lm-eval's own splitting pads the ranks with answers that are
    counted.)
    """

    def __init__(
        self,
        task: str,
        backend: Backend | None,
        folder: Path,
        seed: int,
        retry_errors: bool = False,
    ) -> None:
        super().__init__()
        self.retry_errors, self.failed = retry_errors, 0  # answers that are errors
        self.task, self.backend, self.folder, self.seed = task, backend, folder, seed

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        def ask(backend: Backend, questions: Sequence[Any]) -> list[Likelihood]:
            return backend.loglikelihood(
                [(context, continuation) for _, context, continuation in questions]
            )

        answers = self._answers(
            [("loglikelihood", *request.args) for request in requests],
            ask,
            lambda _, found: {"answer": [found.logprob, found.greedy]},
        )
        return [(logprob, greedy) for logprob, greedy in answers]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise ConfigError(
            f"harness task {self.task}: asks for the perplexity of whole documents, which is not "
            "offered here"
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        def ask(backend: Backend, questions: Sequence[Any]) -> list[Output]:
            settings = {sampling_of(wanted) for _, _, wanted, _, _ in questions}
            if len(settings) > 1:
                raise ConfigError(
                    f"harness task {self.task}: its subtasks decode differently; run them one by "
                    "one"
                )
            prompts = [
                Request(
                    item,
                    sample,
                    seed_of(self.seed, self.task, item, sample),
                    [{"role": "user", "content": text}],
                    text,
                )
                for _, text, _, item, sample in questions
            ]
            return backend.generate(prompts, *settings)

        def record(_: Any, output: Output) -> dict[str, Any]:
            return {"answer": output.text} | ({"error": output.error} if output.error else {})

        seen: dict[str, int] = {}
        questions = []
        for request in requests:  # the n-th request for an item is its n-th sample
            item = f"{request.task_name}/{request.doc_id}"
            questions.append(("generate", *request.args, item, seen.setdefault(item, 0)))
            seen[item] += 1
        return self._answers(questions, ask, record)

    def _answers(
        self,
        questions: list[tuple],
        ask: Callable[[Backend, Sequence[Any]], list[Any]],
        record: Callable[[Any, Any], dict[str, Any]],
    ) -> list[Any]:
        """The answer to each question (kind, prompt, …), of which this rank asks its share.

        Answers that are in the folder are not asked for again.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = [digest(*question) for question in questions]

        def read() -> Samples:
            have = Samples(self.folder, rank)
            if self.backend is None and (absent := len(set(keys) - set(have.records))):
                raise DataError(
                    f"{self.folder}: {absent} of {len(keys)} answers to {self.task} are missing: "
                    "run generate first"
                )
            return have

        def add() -> None:
            if (backend := self.backend) is None:
                return
            ask_for_missing(
                have,
                dict(zip(keys, questions, strict=True)),
                lambda batch: ask(backend, batch),
                record,
                batch_size=backend.batch_size,
                label=f"{self.task} {questions[0][0]}",
                retry_errors=self.retry_errors,
                length=lambda question: len(question[1]),
                rank=rank,
                world=world,
            )

        # all ranks have read before one writes: each must find the same answers missing
        have = _on_all_ranks(read)
        _on_all_ranks(add)
        records = have.records if world == 1 else Samples(self.folder, rank).records
        self.failed = sum(bool(records[key].get("error")) for key in keys)
        return [records[key]["answer"] for key in keys]


def _on_all_ranks(work: Callable[[], T]) -> T:
    """A UserError on one rank is raised on all of them."""
    return raise_on_all_ranks(work) if dist.is_initialized() else work()


def sampling_of(wanted: dict[str, Any]) -> Sampling:
    """lm-eval's generation_kwargs; greedy unless do_sample is set, as there."""
    stop = wanted.get("until") or []
    return Sampling(
        temperature=float(wanted.get("temperature") or 0) if wanted.get("do_sample") else 0.0,
        top_p=float(wanted.get("top_p") or 1),
        max_tokens=int(wanted.get("max_gen_toks") or 256),
        stop=tuple([stop] if isinstance(stop, str) else stop),
    )
