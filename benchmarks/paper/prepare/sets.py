"""The training sets of the paper (arXiv:2510.00526, appendices C and H): what each is, and how one
of its records becomes one of ours.

Layouts and settings are those of the pages named here and of the authors' scripts: data/ and
scripts/one_click/TEMPLATE.py of GaotangLi/Beyond-Log-Likelihood@89e4b0c27a73. Where the number of
records is a range, a hub listing's rounded figure is all we know. A new set is one function with
@register above it; its docstring is the set's help.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from adaptsft.data import layout
from adaptsft.errors import ConfigError, DataError
from adaptsft.evals import openbookqa as obqa
from adaptsft.evals.tasks import Prompt, load_task
from benchmarks.paper.prepare.source import Options, Part, Record, Source, open_source

# What the evaluation's prompts end with (tasks math500, medqa, …), and the authors' for m23k
# (data_process_medical.py).
STEP_BY_STEP = "\nPlease reason step by step, and put your final answer within \\boxed{}."
# MMLU-ProX's codes: muri-it's
LANGUAGES = {
    "mr": "mar",
    "te": "tel",
    "ne": "nep",
    "sw": "swa",
    "wo": "wol",
    "yo": "yor",
    "zu": "zul",
}
GPT_TERMS = (
    "written by OpenAI's models, whose terms of use restrict training models that compete "
    "with theirs"
)

Convert = Callable[[Record], Record]
Open = Callable[[Part, int, Options], Source]


@dataclass(frozen=True)
class TrainingSet:
    """`records`: how many the source has in all its parts, from least to most. `accept`: what a
    user takes upon himself. `asks`: options that the set has besides those of all sets (a key of
    OPTIONS in __main__.py)."""

    name: str
    parts: tuple[Part, ...]
    records: tuple[int, int]
    licence: str
    accept: str
    size: str
    card: str
    asks: tuple[str, ...]
    convert: Convert
    open: Open = open_source
    suffix: str = ""
    max_tokens: int = 0

    @property
    def about(self) -> str:
        return inspect.getdoc(self.convert) or ""


SETS: dict[str, TrainingSet] = {}


def register(*parts: Part, **facts: Any) -> Callable[[Convert], Convert]:
    def add(convert: Convert) -> Convert:
        SETS[convert.__name__] = TrainingSet(convert.__name__, parts, convert=convert, **facts)
        return convert

    return add


def pair(record: Record, prompt: str, completion: str) -> Record:
    """Prompt and completion from the fields of these names. Raises DataError as the trainer would,
    naming the field."""
    names = {"prompt": prompt, "completion": completion}
    texts = [message["content"] for message in layout.prompt(record, names).messages]
    if len(texts) != 2 or not texts[0].strip():
        raise DataError(
            f"field {prompt!r} is empty, or no text: there is no question; remove the record or "
            "write it"
        )
    return {"prompt": texts[0], "completion": texts[1]}


@cache
def prompt_of(task: str) -> Prompt:
    return load_task(task).prompt


FILES = ("source", "broken", "tokens")


@register(
    Part("numina_math.jsonl", hub="AI-MO/NuminaMath-CoT", sample=67_584),
    records=(859_494, 859_494),
    licence="Apache-2.0 (until July 2024 CC BY-NC 4.0)",
    accept=f"many solutions are {GPT_TERMS}",
    size="not known to us (5 parquet files)",
    card="https://huggingface.co/datasets/AI-MO/NuminaMath-CoT",
    asks=(*FILES, "sample", "suffix"),
    suffix=STEP_BY_STEP,
)
def numina_math(record: Record) -> Record:
    """NuminaMath-CoT, a sample of 67k (Tables 2 and 12, Figures 3 to 5).

    Fields: source, problem, solution, messages.

    The authors evaluate step 264 of batch 256, so their sample has at least 67,584 records, and
    fewer than 67,840. How it was drawn is not known, but it is on the hub: --source
    gaotang/numina-cot-subset-67k --sample 67839 --allow-count (fields: extra_info {question,
    answer}, as their training script names them). Examples longer than 3072 tokens are the
    trainer's to drop (data.max_length).
    """
    if isinstance(record.get("extra_info"), dict):
        return pair(record["extra_info"], "question", "answer")
    return pair(record, "problem", "solution")


@register(
    Part("m23k.jsonl", hub="UCSC-VLAA/m23k-tokenized"),
    records=(23_493, 23_493),
    licence="none that we could find stated",
    accept="questions are those of medical exams (MedQA, MedMCQA, HeadQA, PubMedQA); answers were "
    "written by DeepSeek-R1",
    size="not known to us",
    card="https://huggingface.co/datasets/UCSC-VLAA/m23k-tokenized",
    asks=(*FILES, "suffix"),
    suffix=STEP_BY_STEP,
)
def m23k(record: Record) -> Record:
    """m23k with its short chains of thought (Table 3).

    Fields: prompt (with the options), reasoning, distilled_answer_string, answer_letter,
    answer_string, source, …

    The answer is distilled_answer_string, as in the authors' data_process_medical.py
    ("no_thinking"); `reasoning` holds the long thoughts.
    """
    return pair(record, "prompt", "distilled_answer_string")


@register(
    Part("magicoder.jsonl", hub="ise-uiuc/Magicoder-OSS-Instruct-75K"),
    records=(75_150, 75_249),
    licence="MIT",
    accept=f"problems and solutions are {GPT_TERMS}",
    size="203 MB",
    card="https://huggingface.co/datasets/ise-uiuc/Magicoder-OSS-Instruct-75K",
    asks=FILES,
)
def magicoder(record: Record) -> Record:
    """Magicoder-OSS-Instruct-75K (Table 9).

    Fields: lang, raw_index, index, seed (a code snippet), openai_fingerprint, problem, solution.
    """
    return pair(record, "problem", "solution")


@register(
    Part("magpie_evol/magpie.jsonl", hub="Magpie-Align/Magpie-Pro-300K-Filtered", sample=70_000),
    Part("magpie_evol/evol.jsonl", hub="WizardLMTeam/WizardLM_evol_instruct_70k"),
    records=(369_000, 370_998),
    licence="Magpie: llama3 (Meta Llama 3 Community License). Evol-Instruct: MIT on the hub",
    accept="Magpie was written by Llama-3-70B-Instruct, whose licence (1.b.v) forbids improving "
    "other language models with its output, "
    "as the paper's Qwen2.5. Evol-Instruct is for academic research and not for commercial use, "
    "says its project's README, and its answers "
    f"are {GPT_TERMS}",
    size="563 MB and 137 MB",
    card="https://huggingface.co/datasets/Magpie-Align/Magpie-Pro-300K-Filtered and "
    "…/WizardLMTeam/WizardLM_evol_instruct_70k",
    asks=(*FILES, "sample"),
    max_tokens=2048,
)
def magpie_evol(record: Record) -> Record:
    """70k of Magpie-Pro-300K-Filtered, and Evol-Instruct, up to 2048 tokens (Table 8).

    Fields: conversations (a list of {from, value}); instruction, output. --source takes two
    sources, in this order.

    The paper's "Magpie-Prob" is Magpie-Pro. The authors keep what is short enough for Qwen2.5's and
    for Llama-3.1's tokenizer, both (data_process_instruction_tuning.py): give --tokenizer twice.
    Their steps say that 139,552 to 139,775 records were left.
    """
    if "instruction" in record and "output" in record and "conversations" not in record:
        turns = pair(record, "instruction", "output")
        return {
            "messages": [
                {"role": "user", "content": turns["prompt"]},
                {"role": "assistant", "content": turns["completion"]},
            ]
        }
    return {"messages": layout.conversations(record, {"conversations": "conversations"}).messages}


@register(
    *(
        Part(f"muri_it/{code}.jsonl", hub="akoksal/muri-it-language-split", subset=subset)
        for code, subset in LANGUAGES.items()
    ),
    records=(94_500, 95_499),
    licence="Apache-2.0",
    accept="texts are of Wikipedia and CulturaX (Common Crawl); instructions were generated and "
    "translated by models",
    size="31 MB of parquet for mar, 12 MB for swa, 2 MB for wol",
    card="https://huggingface.co/datasets/akoksal/muri-it-language-split",
    asks=FILES,
)
def muri_it(record: Record) -> Record:
    """muri-it in seven languages, the train split of each, 95K in all (Table 10).

    Fields: input, output, dataset_name, subdataset_name, language, split. A local --source is a
    folder with one folder a language, as on the hub: mar, tel, nep, swa, wol, yor, zul.

    The source is the copy of akoksal/muri-it with a subset for each language, as in the authors'
    data_process_low_resource_language.py.
    """
    return pair(record, "input", "output")


def _open_figfont(part: Part, number: int, options: Options) -> Source:
    try:
        from adaptsft.evals import figfont
    except ImportError as error:
        raise ConfigError(f"figfont needs {error.name}: pip install 'adaptsft[eval]'") from None
    split, own = part.subset or "train", options.generator == "own"
    make = figfont.item if own else figfont.reasoning_gym_item()

    def records() -> Iterator[tuple[str, Record, float]]:
        items = figfont.items(split, make)
        if own:
            items = figfont.verified(items, figfont.SHA256[split])
        for done, record in enumerate(items, 1):
            yield f"figfont, item {record['id']}", record, done / len(figfont.SPLITS[split])

    return Source(
        {
            "generator": options.generator,
            "split": split,
            "pyfiglet": figfont.PYFIGLET,
            "seed": figfont.SEED,
        },
        records,
    )


@register(
    Part("figfont.jsonl", subset="train"),
    Part("figfont_test.jsonl", subset="test"),
    records=(45_000, 45_000),
    licence="Apache-2.0 (generated here; fonts of pyfiglet, words of reasoning-gym)",
    accept="nothing more",
    size="generated",
    card="https://github.com/open-thought/reasoning-gym (figlet_font)",
    asks=("generator",),
    open=_open_figfont,
)
def figfont(record: Record) -> Record:
    """Figlet puzzles, 40,000 to train on and the 5,000 that the task `figfont` asks (Table 4),
    checked by hash.

    Other items than the paper's, whose fonts follow the order of a directory:
    adaptsft/evals/figfont.py. The authors' own copy is gaotang/figlet_font.
    """
    from adaptsft.evals.figfont import conversation

    return conversation(record, prompt_of("figfont"))


def _open_openbookqa(part: Part, number: int, options: Options) -> Source:
    """All questions are read at once: which labels are wrong is drawn among all of them."""
    path = Path(options.source[0]) if options.source else None
    if path and path.suffix == ".tsv":
        records = obqa.tsv_records(path)
        facts: Record = {
            "files": [{"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}]
        }
    else:
        source = open_source(part, number, options)
        records, facts = ((place, record) for place, record, _ in source.records()), source.facts
    questions = obqa.questions_of(islice(records, options.limit))
    taught = obqa.labels(questions, options.noise)

    def labelled() -> Iterator[tuple[str, Record, float]]:
        for done, (question, label) in enumerate(zip(questions, taught, strict=True), 1):
            yield (
                f"{part.file}: question {done}",
                {"question": question, "label": label},
                done / len(questions),
            )

    wrong = sum(
        question["gold"] != label for question, label in zip(questions, taught, strict=True)
    )
    return Source(facts | {"wrong_labels": wrong}, labelled)


@register(
    Part("openbookqa.jsonl", hub="allenai/openbookqa", subset="main"),
    records=(4_957, 4_957),
    licence="Apache-2.0 upstream (OpenBookQA-V1-Sep2018)",
    accept="nothing more",
    size="under 2 MB",
    card="https://huggingface.co/datasets/allenai/openbookqa",
    asks=("source", "noise"),
    open=_open_openbookqa,
)
def openbookqa(record: Record) -> Record:
    """OpenBookQA's training questions, with right or partly wrong labels (Table 11).

    Fields: id, question_stem, choices {text, label}, answerKey; or of the published train.tsv: ID,
    Question Stem, Choices, Answer Key.

    Noise as the authors have it (data_process_knowledge_memorization.py): --noise-rate 0.3
    --noise-kind uniform. They also train on the 500 validation questions, which stay right; here
    they are left for held-out figures.
    """
    return obqa.training_record(record["question"], record["label"], prompt_of("openbookqa"))
