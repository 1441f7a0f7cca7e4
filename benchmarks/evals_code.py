"""Grades the published outputs of Qwen2.5-Coder-1.5B, and compares with the published verdicts and
scores.

    python benchmarks/evals_code.py --data-dir DATA --outputs FOLDER [--verdicts FILE] \\
        [--only humaneval]

FOLDER: qwencoder-eval/base/outptus/qwen2.5-coder/1.5b-base/evalplus of
github.com/QwenLM/Qwen3-Coder@0ae30f55: humaneval/ and mbpp/, each with generated_eval_results.json
and result.json.
DATA: HumanEvalPlus-v0.1.9.jsonl.gz and MbppPlus-v0.1.0.jsonl.gz, the versions that graded these.
FILE: more of that repository's verdicts,
{"cases": [{model, dataset, task_id, solution, base, plus}]}.

Runs model-written programs, in the sandbox of adaptsft.evals.code. Results:
benchmarks/results/evals_code.json.
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
    """Published and reproduced scores, and how many verdicts are equal; "plus" means base and plus
    on both sides."""
    folder = options.outputs / dataset
    family, version = VERSIONS[dataset]
    prompts = problems.load(family, options.data_dir, [version])
    published = json.loads((folder / "generated_eval_results.json").read_text())["eval"]
    recorded = [verdict for verdicts in published.values() for verdict in verdicts]
    records = [{"task_id": one["task_id"], "solution": one["solution"]} for one in recorded]
    theirs = [{"base": one["base_status"], "plus": one["plus_status"]} for one in recorded]
    scored = len(records)
    if options.verdicts:
        cases = json.loads(options.verdicts.read_text())["cases"]
        cases = [case for case in cases if case["dataset"] == dataset]
        records += cases
        theirs += [{"base": case["base"], "plus": case["plus"]} for case in cases]
    for verdict in theirs:
        verdict["plus"] = "pass" if verdict["base"] == verdict["plus"] == "pass" else "fail"
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
    differ = []
    for record, our, their in zip(records, ours, theirs, strict=True):
        if any(our[tests] != their[tests] for tests in TESTS):
            model = record.get("model", "qwen2.5-coder-1.5b-base")
            case = {"task_id": record["task_id"], "model": model, "published": their}
            differ.append(case | {key: our[key] for key in (*TESTS, "reason", "test")})
    pairs = list(zip(ours, theirs, strict=True))
    share = evalplus.pass_at_1(ours[:scored])
    score = json.loads((folder / "result.json").read_text())
    names = {"base": dataset, "plus": f"{dataset}+"}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    flags = "--data-dir DATA --outputs FOLDER --verdicts FILE"
    return {
        "data": version,
        "problems": len(prompts.by_id),
        "published pass@1": {tests: score[name]["pass@1"] for tests, name in names.items()},
        "reproduced pass@1": {tests: round(100 * share[tests], 1) for tests in TESTS},
        "programs": len(records),
        "programs of the scores": scored,
        "equal verdicts": {tests: sum(o[tests] == t[tests] for o, t in pairs) for tests in TESTS},
        "out of time": sum(verdict["timeout"] for verdict in ours),
        "tests left out": sum({one["task_id"]: one["untested"] for one in ours}.values()),
        "differ": differ,
        "seconds": round(seconds, 1),
        "isolation": sandbox.isolation(),
        "machine": machine,
        "command": f"python benchmarks/evals_code.py {flags} --only {dataset}",
    }


if __name__ == "__main__":
    sys.exit(main())
