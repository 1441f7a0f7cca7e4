"""Training sets laid out as their publishers do, for the tests of their preparation."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.paper.prepare import __main__ as tool
from benchmarks.paper.prepare.sets import LANGUAGES

Records = list[dict[str, Any]]


def prepare(tmp_path: Path, *arguments: object) -> tuple[dict[str, Records], dict[str, Any]]:
    """Run the tool into tmp_path/data. Returns the records by file, and the provenance."""
    out = tmp_path / "data"
    assert tool.main([str(arguments[0]), "--out", str(out), *map(str, arguments[1:])]) == 0
    facts = json.loads((out / f"{written(arguments)}.json").read_text())
    assert not list(out.rglob("*.tmp"))
    files = {part["file"]: (out / part["file"]).read_text() for part in facts["parts"]}
    return {
        name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()
    }, facts


def written(arguments: tuple[object, ...]) -> object:
    return "openbookqa_noisy" if "--noise-rate" in arguments else arguments[0]


def jsonl(path: Path, records: Records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def parquet(path: Path, records: Records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records), path)
    return path


def numina(number: int) -> dict[str, Any]:
    problem, solution = (
        f"What is {number} + 2?",
        f"Adding gives {number + 2}, so \\boxed{{{number + 2}}}.",
    )
    messages = [{"content": problem, "role": "user"}, {"content": solution, "role": "assistant"}]
    return {"source": "orca_math", "problem": problem, "solution": solution, "messages": messages}


def numina_source(folder: Path) -> list[Path]:
    parquet(folder / "train-00000-of-00002.parquet", [numina(i) for i in range(20)])
    parquet(folder / "train-00001-of-00002.parquet", [numina(i) for i in range(20, 30)])
    return [folder]


def m23k_source(folder: Path) -> list[Path]:
    record = {
        "answer_idx": 1,
        "source": "qiaojin/PubMedQA",
        "answer_letter": "A",
        "answer_string": "Iron",
        "reasoning": "Okay, so …",
    }
    record |= {
        "prompt": "Which metal?\nA. Iron\nB. Zinc",
        "distilled_answer_string": "Blood holds iron. \\boxed{A}",
        "text": "<|im_start|>…",
    }
    return [
        parquet(
            folder / "train-00000-of-00001.parquet",
            [record, record | {"prompt": "Which organ?\nA. Heart"}],
        )
    ]


def magicoder_source(folder: Path) -> list[Path]:
    record = {
        "lang": "python",
        "raw_index": 101533,
        "index": 3856,
        "seed": "def f():",
        "openai_fingerprint": "fp_eeff13170a",
    }
    records = [
        record
        | {"problem": f"Return {i}.", "solution": f"```python\ndef f():\n    return {i}\n```"}
        for i in range(3)
    ]
    return [jsonl(folder / "data-oss_instruct-decontaminated.jsonl", records)]


def magpie_source(folder: Path) -> list[Path]:
    turns = [
        {"from": "human", "value": "What is rain?"},
        {"from": "gpt", "value": "Water that falls from clouds."},
    ]
    magpie = [{"conversations": turns, "uuid": f"u{i}"} for i in range(4)]
    evol = folder / "alpaca_evol_instruct_70k.json"
    parquet(folder / "magpie" / "train-00000-of-00001.parquet", magpie)
    evol.write_text(
        json.dumps([{"instruction": "Name a river.", "output": "The Congo."}] * 2, indent=1)
    )
    return [folder / "magpie", evol]


def muri_source(folder: Path) -> list[Path]:
    for number, subset in enumerate(LANGUAGES.values(), 1):
        record = {
            "dataset_name": "MRI",
            "subdataset_name": "wikipedia",
            "language": subset,
            "split": "train",
        }
        records = [
            record | {"input": f"Yini i-{subset} {i}?", "output": "Umuntu ngumuntu ngabantu."}
            for i in range(number)
        ]
        parquet(folder / subset / "train-00000-of-00001.parquet", records)
    return [folder]
