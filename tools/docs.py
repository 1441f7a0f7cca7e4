"""Write what pages print from the code: docs/config.md, and the tables of docs/objectives.md,
docs/controllers.md and docs/models.md. `make docs` runs it.

    python tools/docs.py
"""

import re
from pathlib import Path

from adaptsft.config.reference import markdown
from adaptsft.controllers.__main__ import describe_controllers
from adaptsft.model.__main__ import describe_models
from adaptsft.objectives.__main__ import describe_objectives

DOCS = Path(__file__).parents[1] / "docs"
TABLES = {
    "objectives.md": describe_objectives,
    "controllers.md": describe_controllers,
    "models.md": describe_models,
}


def main() -> None:
    (DOCS / "config.md").write_text(markdown() + "\n")
    for name, describe in TABLES.items():
        page = DOCS / name
        place = re.compile(r"(?<=current -->\n).*?(?=<!-- end -->)", re.DOTALL)
        before, after = place.split(page.read_text(), maxsplit=1)
        page.write_text(f"{before}\n{describe()}\n\n{after}")


if __name__ == "__main__":
    main()
