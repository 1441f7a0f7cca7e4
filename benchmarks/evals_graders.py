"""How often graders are right on cases whose verdict a careful reader knows, and how fast they are.

    python benchmarks/evals_graders.py --cases FILE.json ... [--golds FILE --responses FILE]

--cases: {"cases": [{"prediction" or "response", "gold", "expected", "contestable"?, "options" or
"lang"?}]}, tests/evals/cases and such files of your own. Cases that readers may decide otherwise
are counted apart. Beside our graders stands math-verify as its readme calls it.
--golds, --responses: 10,000 answers like those to MATH are made of the golds of MATH-500 (half with
a digit changed) and recorded responses, and graded on --workers processes.

Results: benchmarks/results/evals_graders.json, under --name. Those of a "first reading" are of the
commit named there, whose rules had not been tried on the cases.
"""

import argparse
import itertools
import json
import logging
import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from math_verify import parse, verify

from adaptsft.evals.graders.grading import grade_all

RESULTS = Path(__file__).parent / "results" / "evals_graders.json"
ANSWERS = 10_000
Case = dict[str, Any]


def main() -> None:
    asked = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    asked.add_argument("--cases", type=Path, nargs="+", required=True)
    asked.add_argument("--golds", type=Path, help="math500_math_oai.jsonl")
    asked.add_argument("--responses", type=Path, help="{cases: [{response}]}")
    asked.add_argument("--workers", type=int, default=2)
    asked.add_argument("--name", default="now")
    options = asked.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("math-verify", "sympy")},
        "cases": {path.name: on_cases(path, options.workers) for path in options.cases},
    }
    if options.golds and options.responses:
        results["speed"] = speed(options.golds, options.responses, options.workers)
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.write_text(json.dumps(known | {options.name: results}, indent=1) + "\n")
    for name, graders in results["cases"].items():
        for grader, found in graders.items():
            print(f"{name:24} {grader:14} {found}")
    print(results.get("speed", ""))


def on_cases(path: Path, workers: int) -> dict[str, Any]:
    cases = json.loads(path.read_text())["cases"]
    options = [case for case in cases if "options" in case]
    languages = [case for case in cases if "lang" in case]
    rest = [case for case in cases if "options" not in case and "lang" not in case]
    found: dict[str, Any] = {}
    for chosen, names in (
        (rest, ("math-robust", "math-paper")),
        (options, ("mcq-robust", "medical-m1", "medical-paper")),
        (languages, ("mcq-robust", "mmlu-prox")),
    ):
        for name in names if chosen else ():
            verdicts = grade_all(name, chosen, workers=workers)
            key = f"{name} ({'lang' if chosen is languages else 'options'})" if options else name
            found[key] = figures(chosen, [verdict["correct"] for verdict in verdicts])
    if rest:  # in this process: what hangs it is left out
        short = [case for case in rest if case.get("family") != "hang"]
        found[f"math-verify {version('math-verify')}"] = figures(
            short, [*map(by_math_verify, short)]
        )
    return found


def figures(cases: list[Case], verdicts: list[bool]) -> dict[str, Any]:
    agreed = [
        (case["expected"], verdict)
        for case, verdict in zip(cases, verdicts, strict=True)
        if not case.get("contestable")
    ]
    wrong = [verdict for expected, verdict in agreed if not expected]
    return {
        "cases": len(agreed),
        "right": sum(expected == verdict for expected, verdict in agreed),
        "wrong answers": len(wrong),
        "of these judged right": sum(wrong),
    }


def by_math_verify(case: Case) -> bool:
    answer = case["response"] if "response" in case else f"${case['prediction']}$"
    return verify(parse(f"${case['gold']}$"), parse(answer))


def speed(golds: Path, responses: Path, workers: int) -> dict[str, Any]:
    answers = [json.loads(line)["answer"] for line in golds.open()]
    prose = [
        case["response"].replace("\\boxed", "")
        for case in json.loads(responses.read_text())["cases"]
    ]

    def changed(gold: str, k: int) -> str:
        return re.sub(r"\d", lambda digit: str((int(digit[0]) + k) % 10), gold, count=1)

    records = []
    for i, text in zip(range(ANSWERS), itertools.cycle(prose), strict=False):
        gold, k = answers[i % len(answers)], i // len(answers)
        answer = changed(gold, k) if k % 2 else gold.replace("\\frac", "\\dfrac")
        records.append({"gold": gold, "response": f"{text} Therefore $\\boxed{{{answer}}}$."})
    started = time.perf_counter()
    verdicts = grade_all("math-robust", records, workers=workers)
    return {
        "answers": ANSWERS,
        "workers": workers,
        "seconds": round(time.perf_counter() - started, 1),
        "out of time": sum(verdict["timeout"] for verdict in verdicts),
    }


if __name__ == "__main__":
    main()
