"""Files of JSON lines, one per step, that a resumed run continues."""

import json
import math
from pathlib import Path
from typing import Any

from adaptsft.files import replacing


def drop_lines_after(path: Path, step: int) -> None:
    """Cut a JSON-lines file back to the lines of steps up to `step`: a resumed run writes the
    others again. A torn last line is dropped too."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (ValueError, TypeError, KeyError):
            continue
        kept.append(line + "\n")
    with replacing(path) as partial:
        partial.write_text("".join(kept))


def json_line(line: dict[str, Any]) -> str:
    """A line of JSON; numbers that are not finite, which JSON does not know, become null."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(part) for key, part in value.items()}
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(line)) + "\n"
