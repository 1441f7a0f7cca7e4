"""Programs that try to look right."""

from pathlib import Path

import pytest

from adaptsft.evals.code.expected import expected_outputs
from adaptsft.evals.code.problems import Problem
from adaptsft.evals.code.verdict import judge
from tests.evals.conftest import executes

ADD = Problem("HumanEval/0", "f", "def f(x): return [x + 1]", [[1], [2]], [[10], [20]], 0)


TELL = """
import json, os
def tell(text):
    for channel in range(3, 64):
        try: os.write(channel, text.encode() + b"\\n")
        except OSError: pass
"""


@executes
@pytest.mark.parametrize(
    "cheat",
    [
        # equal to everything (evalplus#306, openai/human-eval#67), alone, in a list, as a list, and
        # hashed alike
        "class Any:\n"
        " def __eq__(self, other): return True\n"
        " def __ne__(self, other): return False\n"
        " def __hash__(self): return 0\n"
        "def f(x): return Any()",
        "class Any:\n def __eq__(self, other): return True\ndef f(x): return [Any()]",
        "class Any(list):\n"
        " def __eq__(self, other): return True\n"
        " def __len__(self): return 1\n"
        "def f(x): return Any()",
        "class Any(int):\n def __eq__(self, other): return True\ndef f(x): return [Any()]",
        # looking for the answer in the callers' frames
        "import inspect\n"
        "def f(x):\n"
        " for frame in inspect.stack():\n"
        "  for name in ('expected', 'exp', 'wanted', 'outputs', 'texts'):\n"
        "   if name in frame.frame.f_locals: return frame.frame.f_locals[name]",
        "import gc\n"
        "def f(x):\n"
        " lists = (o for o in gc.get_objects() if isinstance(o, list))\n"
        " return next((o for o in lists if o == [x + 1]), None)",
        # claiming success and leaving
        "import os, inspect\n"
        "def f(x):\n"
        " for frame in inspect.stack():\n"
        "  if 'stat' in frame.frame.f_locals: frame.frame.f_locals['stat'].value = 0\n os._exit(0)",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        # writing results itself
        TELL
        + "for i in range(4): tell(json.dumps({'i': i, 't': 0.0, 'value': 'true', 'pass': True}))\n"
        + "os._exit(0)",
        TELL + 'tell(\'{"setup": "it did not start"}\')\ndef f(x): return [x + 1]',
        TELL + "tell('[' * 10**5)\ndef f(x): return [x + 1]",
        TELL + 'tell(\'{"i": 0, "t": 0, "large": true}\')\ndef f(x): return [x + 1]',
        # a pickle that would run in whoever loads it
        "import os\n"
        "class P:\n"
        " def __reduce__(self): return os.system, ('touch /tmp/pickled',)\n"
        "def f(x): return P()",
        # rewriting what runs it
        "import json\njson.dumps = lambda value: '\"anything\"'\ndef f(x): return 0",
    ],
)
def test_looking_right_is_not_being_right(cheat: str, tmp_path: Path) -> None:
    verdict = judge(ADD, expected_outputs(ADD, tmp_path), cheat)
    assert (verdict["base"], verdict["plus"]) == ("fail", "fail")
    assert verdict["reason"]
    assert not Path("/tmp/pickled").exists()
