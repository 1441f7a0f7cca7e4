"""Grades the published outputs of Qwen2.5-Coder-1.5B and compares with the published verdicts and scores.

    python benchmarks/evals_code.py --data-dir DATA --outputs FOLDER [--verdicts FILE] [--only humaneval]

FOLDER: qwencoder-eval/base/outptus/qwen2.5-coder/1.5b-base/evalplus of github.com/QwenLM/Qwen3-Coder@0ae30f55: humaneval/ and mbpp/, each
with generated_eval_results.json and result.json. DATA: HumanEvalPlus-v0.1.9.jsonl.gz and MbppPlus-v0.1.0.jsonl.gz, the versions that it was
graded on. FILE: more of that repository's verdicts, {"cases": [{model, dataset, task_id, solution, base, plus}]}.
Runs model-written programs, in the sandbox of adaptsft.evals.code. Results: benchmarks/results/evals_code.json.
"""

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path

from tqdm import tqdm

from adaptsft.evals.code import evalplus, problems, sandbox

RESULTS = Path(__file__).parent / "results" / "evals_code.json"
VERSIONS = {"humaneval": ("HumanEval", "HumanEvalPlus-v0.1.9"), "mbpp": ("Mbpp", "MbppPlus-v0.1.0")}
TESTS = ("base", "plus")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--verdicts", type=Path)
    parser.add_argument("--only", choices=list(VERSIONS))
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    for dataset in [options.only] if options.only else VERSIONS:
        result = replay(dataset, options)
        results = (json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}) | {dataset: result}
        partial = RESULTS.with_suffix(".tmp")
        partial.write_text(json.dumps(results, indent=1) + "\n")
        partial.replace(RESULTS)


def replay(dataset: str, options: argparse.Namespace) -> dict:
    """Published and reproduced scores, and how many verdicts are equal; "plus" means base and plus on both sides."""
    folder = options.outputs / dataset
    family, version = VERSIONS[dataset]
    prompts = problems.load(family, options.data_dir, [version])
    published = json.loads((folder / "generated_eval_results.json").read_text())["eval"]
    recorded = [row for rows in published.values() for row in rows]
    records = [{"task_id": row["task_id"], "solution": row["solution"]} for row in recorded]
    theirs = [{"base": row["base_status"], "plus": row["plus_status"]} for row in recorded]
    scored = len(records)
    if options.verdicts:
        cases = [
            case
            for case in json.loads(options.verdicts.read_text())["cases"]
            if case["dataset"] == dataset
        ]
        records += cases
        theirs += [{"base": case["base"], "plus": case["plus"]} for case in cases]
    for row in theirs:
        row["plus"] = "pass" if row["base"] == row["plus"] == "pass" else "fail"
    started = time.perf_counter()
    with tqdm(total=len(records), desc=version, unit="program") as bar:
        ours = evalplus.grade(
            records,
            data_dir=options.data_dir,
            allow_code_exec=True,
            version=[version],
            workers=options.workers,
            progress=bar.update,
        )
    seconds = time.perf_counter() - started
    differ = [
        {
            "task_id": record["task_id"],
            "model": record.get("model", "qwen2.5-coder-1.5b-base"),
            "published": their,
        }
        | {key: our[key] for key in (*TESTS, "reason", "test")}
        for record, our, their in zip(records, ours, theirs, strict=True)
        if any(our[tests] != their[tests] for tests in TESTS)
    ]
    share = evalplus.pass_at_1(ours[:scored])
    score = json.loads((folder / "result.json").read_text())
    return {
        "data": version,
        "problems": len(prompts.by_id),
        "published pass@1": {
            "base": score[dataset]["pass@1"],
            "plus": score[f"{dataset}+"]["pass@1"],
        },
        "reproduced pass@1": {tests: round(100 * share[tests], 1) for tests in TESTS},
        "programs": len(records),
        "programs of the scores": scored,
        "equal verdicts": {
            tests: sum(o[tests] == t[tests] for o, t in zip(ours, theirs, strict=True))
            for tests in TESTS
        },
        "out of time": sum(row["timeout"] for row in ours),
        "tests left out": sum({row["task_id"]: row["untested"] for row in ours}.values()),
        "differ": differ,
        "seconds": round(seconds, 1),
        "isolation": sandbox.isolation(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "command": " ".join(
            [
                "python benchmarks/evals_code.py",
                "--data-dir DATA --outputs FOLDER --verdicts FILE --only",
                dataset,
            ]
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
