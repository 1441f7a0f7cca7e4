"""Losses, gradient norms, objective states and final weights of small runs, kept in `golden.json`.

    python -m tests.golden            run them and show what differs; exit code 1 if anything does
    python -m tests.golden --write    and write the file anew

A change that only moves or renames code leaves every bit as it is. One that means to change numbers
writes the file anew, and its commit shows which runs changed. Bits depend on the processor and on
torch: where these are not those of the file, figures are compared to a relative 5e-3 and weights
are not.
"""

import argparse
import hashlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.distributed.two_ranks import on_two_ranks
from tests.golden.train import RUNS, train_all

FILE = Path(__file__).with_name("golden.json")
FIGURES = ("loss", "nll", "mean_p", "weight", "entropy", "tokens", "kept", "grad_norm", "lr")
FIGURES += ("alpha", "lower", "upper", "floor")
TOLERANCE = (
    5e-3  # relative, where bits cannot be compared; the run in bf16 is the one that needs it
)


def write_data(folder: Path) -> None:
    """Additions of uneven length, in one file; lines of another kind; three files for a stream."""
    generator = random.Random(0)
    lines = []
    for _ in range(40):
        terms = [generator.randrange(100) for _ in range(generator.randrange(2, 7))]
        prompt, completion = "Add " + ", ".join(map(str, terms)), f"The sum is {sum(terms)}."
        lines.append(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
    other = [json.dumps({"prompt": f"{i}?", "completion": "zzz " * 5}) + "\n" for i in range(20)]
    (folder / "data.jsonl").write_text("".join(lines))
    (folder / "other.jsonl").write_text("".join(other))
    for part in range(3):
        (folder / f"part-{part}.jsonl").write_text("".join(lines[part::3]))


def measure() -> dict[str, Any]:
    """Train all runs, on one rank and on two, and read what they left."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder)
        for ranks in (1, 2):
            codes, printed = on_two_ranks(train_all, folder, log=folder / "log", ranks=ranks)
            if any(codes):
                raise SystemExit(f"the runs of {ranks} ranks failed:\n{printed[-4000:]}")
        machine = json.loads((folder / "machine.json").read_text())
        return {"machine": machine, "runs": {name: read(folder / name) for name in RUNS}}


def read(run: Path) -> dict[str, Any]:
    """The figures of every step and of its sources, and a digest of the final weights."""

    def figures(row: dict[str, Any]) -> dict[str, float]:
        return {name: row[name] for name in FIGURES if name in row}

    steps = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        steps.append(figures(row))
        for source, values in row.get("sources", {}).items():
            steps[-1] |= {f"{source}/{name}": value for name, value in figures(values).items()}
    weights = hashlib.sha256()
    for path in sorted((run / "final").glob("*.safetensors")):
        weights.update(path.read_bytes())
    return {"steps": steps, "weights": weights.hexdigest()}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """One line for every run that differs: the first step and figure that do, or the weights."""
    exact, lines = old["machine"] == new["machine"], []
    for name in sorted(old["runs"].keys() | new["runs"].keys()):
        if name not in old["runs"] or name not in new["runs"]:
            lines.append(f"{name}: only in {'the new' if name in new['runs'] else 'the old'} runs")
            continue
        was, now = old["runs"][name], new["runs"][name]
        if len(was["steps"]) != len(now["steps"]):
            lines.append(f"{name}: {len(was['steps'])} -> {len(now['steps'])} steps")
            continue
        changed = [
            f"step {step}: {figure} {before.get(figure)} -> {after.get(figure)}"
            for step, (before, after) in enumerate(zip(was["steps"], now["steps"], strict=True), 1)
            for figure in sorted(before.keys() | after.keys())
            if not same(before.get(figure), after.get(figure), exact)
        ]
        if changed:
            lines.append(f"{name}: {changed[0]} ({len(changed)} figures in all)")
        elif exact and was["weights"] != now["weights"]:
            lines.append(f"{name}: final weights {was['weights'][:12]} -> {now['weights'][:12]}")
    return lines


def same(old: float | None, new: float | None, exact: bool) -> bool:
    if old is None or new is None or exact:
        return old == new
    return abs(old - new) <= TOLERANCE * max(abs(old), abs(new))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.golden", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help="write golden.json anew")
    options = parser.parse_args()
    new = measure()
    lines = differences(json.loads(FILE.read_text()), new) if FILE.is_file() else ["no golden.json"]
    print("\n".join(lines) or "all runs are as they were")
    if options.write:
        FILE.write_text(json.dumps(new, indent=1) + "\n")
    return int(bool(lines) and not options.write)


if __name__ == "__main__":
    sys.exit(main())
