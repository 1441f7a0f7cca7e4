"""A backend as the model that lm-eval evaluates."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from tqdm import tqdm

from adaptsft.distributed.ranks import raise_on_all_ranks
from adaptsft.errors import ConfigError, DataError
from adaptsft.evals.harness.library import LM, Instance
from adaptsft.evals.protocol import Backend, Request, Sampling
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
        def ask(backend: Backend, questions: Sequence[Any]) -> list[Any]:
            pairs = [(context, continuation) for _, context, continuation in questions]
            found = backend.loglikelihood(pairs)
            return [{"answer": [one.logprob, one.greedy]} for one in found]

        answers = self._answers([("loglikelihood", *request.args) for request in requests], ask)
        return [(logprob, greedy) for logprob, greedy in answers]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise ConfigError(
            f"harness task {self.task}: asks for the perplexity of whole documents, which is not "
            "offered here"
        )

    def generate_until(self, requests: list[Instance]) -> list[str]:
        def ask(backend: Backend, questions: Sequence[Any]) -> list[Any]:
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
            outputs = backend.generate(prompts, *settings)
            return [
                {"answer": one.text} | ({"error": one.error} if one.error else {})
                for one in outputs
            ]

        seen: dict[str, int] = {}
        questions = []
        for request in requests:  # the n-th request for an item is its n-th sample
            item = f"{request.task_name}/{request.doc_id}"
            questions.append(("generate", *request.args, item, seen.setdefault(item, 0)))
            seen[item] += 1
        return self._answers(questions, ask)

    def _answers(
        self, questions: list[tuple], ask: Callable[[Backend, Sequence[Any]], list[Any]]
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
            if self.backend is None:
                return
            missing = {
                key: question
                for key, question in zip(keys, questions, strict=True)
                if key not in have.records or (self.retry_errors and have.records[key].get("error"))
            }
            # the longest prompts first: memory runs out at once or never
            mine = sorted(missing.items(), key=lambda pair: -len(pair[1][1]))[rank::world]
            bar = tqdm(
                total=len(mine),
                desc=f"{self.task} {questions[0][0]}",
                unit="answer",
                disable=rank != 0,
                mininterval=1.0,
            )
            with bar:
                for start in range(0, len(mine), self.backend.batch_size):
                    batch = mine[start : start + self.backend.batch_size]
                    answers = ask(self.backend, [question for _, question in batch])
                    pairs = zip(batch, answers, strict=True)
                    have.add([{"key": key} | answer for (key, _), answer in pairs])
                    bar.update(len(batch))

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
