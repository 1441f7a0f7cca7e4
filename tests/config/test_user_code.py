"""Code of a user's own that a key names: what is found, refused, and kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adaptsft.config import user_code
from adaptsft.config.resolve import load_config
from adaptsft.config.schema import Config, ObjectiveConfig
from adaptsft.errors import ConfigError, warn
from adaptsft.objectives.build import build_objective
from adaptsft.objectives.trial import try_out
from tests.conftest import REPO
from tests.objectives.tokens import P, shipped, state_of, tokens_at

BASE = ["run_dir=r", "model.path=m", "data.path=d.jsonl"]

OBJECTIVES = """
import torch
from adaptsft.objectives.base import register

scale = 3

def nll(logp): return -logp
def neg_p(logp): return -logp.exp()
def f_alpha(logp, alpha, floor):
    return floor * -logp - (1 - floor) * torch.expm1(alpha * logp) / alpha
def focal(logp, one_minus_p, *, gamma=2.0): return -one_minus_p**gamma * logp
def eaft(logp, top_entropy): return -(top_entropy / 3.0) * logp
def deft(logp, collision): return -torch.exp(collision * logp).detach() * logp
def prift_mass(logp, reference): return -(reference.mass >= 0.5).to(logp.dtype) * logp
def chord_phi(logp, one_minus_p):
    weight = logp.exp() * one_minus_p
    return -weight * logp, weight
def everything(tokens, state): return -tokens.logp, torch.ones_like(tokens.logp)

@register("registered_by_a_user", uses=["alpha"], bounds={"k": (0, 2)}, whole_batch=True)
def registered(tokens, state, *, k=1.0):
    return -k * state.alpha * tokens.logp / tokens.logp.mean().detach()

def of_p(p): return 1 - p
def misspelt(logp, entropyy): return -logp
def with_default(logp, gamma=2.0): return -logp
def without_default(logp, *, gamma): return -logp
def variadic(*tokens): return -tokens[0]
def nothing(): return 0
def mean(logp): return -logp.mean()
def number(logp): return 3.0
def constant(logp, entropy): return entropy
def normalised(logp): return -logp * (logp.exp() / logp.exp().sum()).detach()
def not_a_number(logp): return logp.sqrt()
def rounded(logp): return torch.log(1 - logp.exp()) * logp
def undeclared(tokens, state): return -tokens.logp * state.alpha
def broken(logp):
    return -logp.lost
def wrong_sign(logp): return logp
"""

CONTROLLERS = """
import torch
from typing import ClassVar
from adaptsft.controllers.base import Controller, register
from adaptsft.controllers.schedules import Schedule

class Running(Controller):
    decay: float = 0.9
    def update(self, state, statistics, progress):
        return {"alpha": self.decay * state["alpha"] + (1 - self.decay) * statistics.mean_p}

@register("decorated_by_a_user")
class Decorated(Running):
    bounds: ClassVar = {"decay": (0.0, 1.0)}

class Square(Schedule):
    def shape(self, progress): return progress.share**2

def function(logp): return -logp
class Other: pass
class Misspelt(Running): moves = ("alfa",)
class Bounds(Running): bounds: ClassVar = {"decy": (0, 1)}
class NoDefault(Controller):
    rate: float
class Changeable(Controller):
    rates: list = []
class NoUpdate(Controller): pass
class NoShape(Schedule): pass
class Forgets(Running):
    def update(self, state, statistics, progress): return {}
class Scalar(Running):
    def update(self, state, statistics, progress): return {"alpha": torch.tensor(0.5)}
class Infinite(Running):
    def update(self, state, statistics, progress): return {"alpha": state["alpha"] / 0}
class Broken(Running):
    def update(self, state, statistics, progress):
        return statistics.lost
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of the modules, which every test of this file names by their paths."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "objectives.py").write_text(OBJECTIVES)
    (folder / "control.py").write_text(CONTROLLERS)
    (folder / "raises.py").write_text("import sys\n\nsys.exit('no main guard')\n")
    (folder / "needs.py").write_text("import not_installed_at_all\n")
    (folder / "syntax.py").write_text("def f(logp):\n    return -logp)\n")
    return folder


@pytest.mark.parametrize(
    "name", ["nll", "neg_p", "f_alpha", "focal", "eaft", "deft", "prift_mass", "chord_phi"]
)
def test_a_function_is_what_ours_of_its_formula_is(folder, name):
    """What it reads follows from its parameters."""
    ours = build_objective(ObjectiveConfig(name="alpha" if name == "f_alpha" else name))
    theirs = build_objective(ObjectiveConfig(name=f"{folder}/objectives.py:{name}"))
    tokens, state = tokens_at(P), state_of(len(P), alpha=0.5, floor=0.1)
    assert (theirs.uses, theirs.needs) == (ours.uses, ours.needs)
    for found, expected in zip(theirs(tokens, state), ours(tokens, state), strict=True):
        assert not found.requires_grad
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-30)


def test_it_is_configured_as_ours_are(folder):
    place = f"{folder}/objectives.py"
    tokens, state = tokens_at(["0.25", "0.64"]), state_of(2, lower=0.5)
    masked = ObjectiveConfig(name="threshold", base=f"{place}:focal", params={"gamma": 3.0})
    loss, weight = build_objective(masked)(tokens, state)
    assert loss[0] == weight[0] == 0 and loss[1] == pytest.approx(-(0.36**3) * tokens.logp[1])
    with pytest.raises(ConfigError, match=r"params\.gama is no parameter.*did you mean gamma"):
        build_objective(ObjectiveConfig(name=f"{place}:focal", params={"gama": 3.0}))
    registered = ObjectiveConfig(name=f"{place}:registered", params={"k": 2.0})
    found = build_objective(registered)
    assert (found.name, found.uses, found.whole_batch) == (registered.name, {"alpha"}, True)
    with pytest.raises(ConfigError, match=r"params\.k=3\.0: must lie in \[0, 2\]"):
        build_objective(ObjectiveConfig(name=registered.name, params={"k": 3.0}))
    assert build_objective(ObjectiveConfig(name="registered_by_a_user")).uses == {"alpha"}
    assert build_objective(ObjectiveConfig(name=f"{place}:everything")).uses == set()
    assert load_config([*BASE, f"objective.name={place}:nll"]).objective.name == f"{place}:nll"


def test_a_controller_acts_through_the_objective_that_reads_what_it_moves(folder):
    own = f"objective.name={folder}/objectives.py:f_alpha"
    for name, more in (
        ("Running", ["controller.params.decay=0.5"]),
        ("Decorated", ["controller.params.decay=0.5"]),
        ("Square", ["controller.parameter=floor", "controller.end=0.5"]),
    ):
        config = load_config([*BASE, own, f"controller.name={folder}/control.py:{name}", *more])
        assert config.controller.name == f"{folder}/control.py:{name}"
    config = load_config([*BASE, f"controller.name={folder}/control.py:Running"])
    assert config.objective.name == "alpha", "the class says nothing else"
    with pytest.raises(ConfigError, match=r"decay=7\.0: must lie in \[0, 1\]"):
        load_config(
            [*BASE, f"controller.name={folder}/control.py:Decorated", "controller.params.decay=7"]
        )
    with pytest.raises(
        ConfigError, match=r"moves alpha, which .*:focal does not read: give .*focal"
    ):
        load_config(
            [
                *BASE,
                f"objective.name={folder}/objectives.py:focal",
                f"controller.name={folder}/control.py:Running",
            ]
        )


OBJECTIVE_ERRORS = {
    "objectives.py:focl": [
        "objectives.py) has no focl",
        "did you mean focal?",
        "Choose one of: nll, neg_p",
    ],
    "objectives.py:scale": ["is no function"],
    "objectives.py:register": ["takes name"],
    "objectives.py:": ["write MODULE:NAME"],
    "objective.py:nll": ["objective.py: no such file", "did you mean", "objectives.py?"],
    "objectives:nll": ["no module", "current directory", "objectives.py:nll"],
    "raises.py:f": ["raises.py, line 3: SystemExit: no main guard"],
    "needs.py:f": ["needs.py, line 1: ModuleNotFoundError", "not_installed_at_all"],
    "syntax.py:f": ["syntax.py, line 2: SyntaxError"],
    "control.py:Running": ["is no function"],
    "objectives.py:of_p": ["takes p, which is no statistic of a token (p is logp.exp())"],
    "objectives.py:misspelt": ["takes entropyy", "did you mean entropy?"],
    "objectives.py:with_default": ["gamma=2.0 must stand behind a star, *, gamma=2.0"],
    "objectives.py:without_default": ["gamma must have a number as default"],
    "objectives.py:variadic": ["takes *tokens: name what it reads"],
    "objectives.py:nothing": ["takes nothing to read"],
    "objectives.py:mean": ["loss of shape (): one value per token is needed, [8]"],
    "objectives.py:number": ["returned float, not the loss [n], or (loss [n], weight [n])"],
    "objectives.py:constant": ["depends on neither logp nor one_minus_p"],
    "objectives.py:normalised": ["depends on the tokens beside it", "whole_batch=True"],
    "objectives.py:not_a_number": ["a loss that is not finite, at p ="],
    "objectives.py:rounded": ["a loss that is not finite, at p = 1;"],
    "objectives.py:undeclared": ["not finite", "uses="],
    "objectives.py:broken": ["objectives.py, line 38: AttributeError", "lost"],
}


@pytest.mark.parametrize("key", ["objective.name", "objective.base"])
@pytest.mark.parametrize("name", OBJECTIVE_ERRORS)
def test_an_objective_that_cannot_work_is_refused(folder, name, key):
    more = ["objective.name=threshold"] if key == "objective.base" else []
    with pytest.raises(ConfigError) as error:
        load_config([*BASE, *more, f"{key}={folder}/{name}"])
    assert str(error.value).startswith(f"{key}={folder}/{name}")
    assert all(word in str(error.value) for word in OBJECTIVE_ERRORS[name]), error.value


CONTROLLER_ERRORS = {
    "control.py:Runing": ["has no Runing", "did you mean Running?"],
    "control.py:function": ["is no subclass of adaptsft.controllers.base.Controller"],
    "control.py:Other": ["is no subclass of adaptsft.controllers.base.Controller"],
    "control.py:Misspelt": ["moves=alfa", "did you mean alpha?"],
    "control.py:Bounds": ["bounds of decy", "did you mean decay?"],
    "control.py:NoDefault": ["rate must have a number as default"],
    "control.py:Changeable": ["mutable default"],
    "control.py:NoUpdate": ["NotImplementedError: NoUpdate has no update"],
    "control.py:NoShape": ["NotImplementedError: NoShape has no shape"],
    "control.py:Forgets": ["update must return a dict of alpha; found []"],
    "control.py:Scalar": ["update: alpha must be a tensor with an entry per source and one more"],
    "control.py:Infinite": ["update: alpha is not finite"],
    "control.py:Broken": ["control.py, line 37: AttributeError", "lost"],
    "contrl.py:Running": ["no such file", "did you mean"],
}


@pytest.mark.parametrize("name", CONTROLLER_ERRORS)
def test_a_controller_that_cannot_work_is_refused(folder, name):
    start = f"controller.name={folder}/{name}"
    with pytest.raises(ConfigError) as error:
        load_config([*BASE, "objective.name=alpha", start])
    assert str(error.value).startswith(start)
    assert all(word in str(error.value) for word in CONTROLLER_ERRORS[name]), error.value


def test_the_lists_of_names_say_how_ones_own_is_named():
    for setting, own in (
        ("objective.name=focl", "MODULE:FUNCTION"),
        ("controller.name=aut", "MODULE:CLASS"),
    ):
        with pytest.raises(ConfigError, match=f"{setting} is unknown; did you mean.*{own}"):
            load_config([*BASE, setting])


def test_ours_would_pass_as_ones_own():
    """Also that what is not declared is not read: the trial leaves it out."""
    for name in shipped():
        for params in ({}, {"batch": 1.0}) if name in ("cayley", "talr") else ({},):
            objective = build_objective(ObjectiveConfig(name=name, params=params))
            try_out(name, objective, Path("ours.py"))


def test_a_sign_that_unlearns_is_warned_of(folder, capsys):
    warn.cache_clear()
    name = f"objective.name={folder}/objectives.py:wrong_sign"
    load_config([*BASE, name])
    assert f"warning: {name}: its weight is negative" in capsys.readouterr().err


def test_what_is_imported_from_beside_it_is_kept_with_it(tmp_path, monkeypatch):
    """Of a package, by its places in it; libraries and what is not imported are not."""
    package = tmp_path / "losses_of_mine"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "deep" / "__init__.py").write_text("from ..table import K\n")
    (package / "table.py").write_text("import torch\nK = torch.ones(1)\n")
    (package / "unused.py").write_text("")
    (tmp_path / "outside_of_it.py").write_text("two = 2\n")
    main = "import outside_of_it\nfrom .deep import K\n\ndef f(logp): return -K * logp\n"
    (package / "main.py").write_text(main)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    config = Config(objective=ObjectiveConfig(name="losses_of_mine.main:f"))
    (code,) = user_code.of_config(config).values()
    assert {*code.files} == {
        f"losses_of_mine/{name}"
        for name in ("__init__.py", "main.py", "deep/__init__.py", "table.py")
    }
    before = user_code.digest(config)
    (package / "main.py").write_text("edited")
    assert user_code.digest(config) == before, "as it was when it was imported"
    assert code.files["losses_of_mine/main.py"] == main.encode()


SCRIPT = """
import sys
from adaptsft.config.resolve import load_config
from adaptsft.errors import ConfigError
try:
    config = load_config(["run_dir=r", "model.path=m", "data.path=d.jsonl", *sys.argv[1:]])
    print("found", config.objective.name)
except ConfigError as error:
    print("refused", error)
"""


@pytest.mark.nightly
def test_modules_of_the_current_directory_are_found_from_a_script_elsewhere(tmp_path):
    """As from a console script, whose own folder begins the path; and each is run once, by whatever
    names it is called."""
    work, home = tmp_path / "work", tmp_path / "bin"
    for folder in (work, home):
        folder.mkdir()
    (home / "script.py").write_text(SCRIPT)
    (work / "losses_here.py").write_text(
        "from adaptsft.controllers.base import Controller\n"
        "from adaptsft.objectives.base import register\n\n\n"
        "print('imported')\n\n\n"
        "@register('mine')\ndef mine(logp, alpha):\n    return -logp * (1 + alpha)\n\n\n"
        "class Same(Controller):\n"
        "    def update(self, state, statistics, progress):\n        return state\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{REPO}{os.pathsep}{REPO / 'kernels'}"}

    def run(*arguments: str, script: Path = home / "script.py") -> list[str]:
        done = subprocess.run(
            [sys.executable, str(script), *arguments],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    by_name, by_path = "losses_here:mine", "./losses_here.py:mine"
    assert run(f"objective.name={by_name}") == ["imported", f"found {by_name}"]
    for objective, controller in (
        (by_name, "./losses_here.py:Same"),
        (by_path, "losses_here:Same"),
    ):
        found = run(f"objective.name={objective}", f"controller.name={controller}")
        assert found == ["imported", f"found {objective}"]
    program = work / "program_here.py"  # a script that registers what it then names
    program.write_text((work / "losses_here.py").read_text() + SCRIPT)
    for name in ("program_here:mine", "./program_here.py:mine", "mine"):
        found = run(f"objective.name={name}", script=program)
        assert found == ["imported", f"found {name}"]
    (refused,) = run("objective.name=loses_here:mine")
    assert refused.startswith("refused objective.name=loses_here:mine: no module loses_here in")
    assert refused.endswith("did you mean losses_here?")
