"""What a run changed: the same tokens, or tokens of the same data, before and after training."""

import math
from dataclasses import dataclass

from adaptsft.analysis.report.folder import Row, RunFolder, mapping, number, of_diagnosis, pooled


@dataclass
class Change:
    basis: str  # what was measured
    before_label: str
    after_label: str
    before: Row  # as `pooled` returns them, with `sources` where there are several
    after: Row

    def of(self, source: str | None) -> tuple[Row, Row]:
        if source is None:
            return self.before, self.after
        before, after = (mapping(side.get("sources")) for side in (self.before, self.after))
        return mapping(before.get(source)), mapping(after.get(source))

    def is_known(self) -> bool:
        return math.isfinite(number(self.before.get("mean_p")) + number(self.after.get("mean_p")))


def changes(run: RunFolder) -> list[Change]:
    """By what mean p may be compared before and after, the fairest first."""
    found = [_diagnosed(run), _held_out(run), _trained_on(run)]
    return [change for change in found if change is not None and change.is_known()]


def _diagnosed(run: RunFolder) -> Change | None:
    if not run.diagnosis or not run.diagnosis_after:
        return None
    before, after = of_diagnosis(run.diagnosis), of_diagnosis(run.diagnosis_after)
    return Change("the diagnosed training data", "base model", "final model", before, after)


def _held_out(run: RunFolder) -> Change | None:
    if not run.held_out or run.held_out[0]["step"] != 0 or run.held_out[-1]["step"] == 0:
        return None
    first, last = run.held_out[0], run.held_out[-1]
    return Change("held-out data", "before step 1", f"after step {last['step']:,}", first, last)


def _trained_on(run: RunFolder) -> Change | None:
    """The end of the run against the diagnosis of the base model or, without one, the first
    step."""

    def whole(rows: list[Row]) -> Row:
        return pooled(rows) | {"sources": {name: pooled(rows, name) for name in run.sources}}

    last = run.last_rows
    if not last:
        return None
    ending = f"step {last[0]['step']:,}"
    if len(last) > 1:
        ending = f"steps {last[0]['step']:,} to {last[-1]['step']:,}"
    if run.diagnosis:
        before, label = of_diagnosis(run.diagnosis), "diagnosis of the base model"
    elif run.rows[0]["step"] == 1 and len(run.rows) > 1:
        before, label = whole(run.rows[:1]), "step 1, one batch under the untouched model"
    else:
        return None
    return Change("training data", label, ending, before, whole(last))
