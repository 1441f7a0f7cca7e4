"""The generated reference names every key."""

from adaptsft.config.reference import help_text, markdown
from adaptsft.config.schema import all_keys
from tests.conftest import REPO


def test_help_and_reference_name_every_key():
    text, document = help_text(), (REPO / "docs" / "config.md").read_text()
    for name, declared, _ in all_keys():
        assert declared.metadata["help"]
        assert f"  {name}  [" in text
    assert document.strip() == markdown().strip(), (
        "run: python -m adaptsft.config.reference > docs/config.md"
    )
