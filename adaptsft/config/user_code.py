"""Code of the user's own that a key names: `my_module:name`, or `path/to/file.py:name`.

A module is looked for in the current directory first, then on the Python path, as by `python -m`,
whatever started the command. It is imported once in a process, before any model or data is loaded.
Commands that read a run folder, and train nothing, do not import it.
"""

import ast
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from adaptsft.config.schema import Config
from adaptsft.errors import ConfigError, UserError, did_you_mean, require, require_known

OURS = ("adaptsft", "adaptsft_kernels")
LIBRARIES = {
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
}


@dataclass(frozen=True)
class UserCode:
    """What a key names, its source file, and what the run folder keeps: that file and those that it
    imports from its folder, or of its package, by their place there, as they were when imported."""

    value: Any
    path: Path
    files: Mapping[str, bytes]


def is_user_code(value: str) -> bool:
    return ":" in value


def of_config(config: Config) -> dict[str, UserCode]:
    """By key, what a configuration names. Raises ConfigError."""
    names = {"objective.name": config.objective.name, "controller.name": config.controller.name}
    if config.objective.name == "threshold":
        names["objective.base"] = config.objective.base
    return {key: load(key, name) for key, name in names.items() if is_user_code(name)}


def digest(config: Config) -> str:
    """Of the sources of all that a configuration names."""
    sources = [(key, sorted(code.files.items())) for key, code in of_config(config).items()]
    return hashlib.sha256(repr(sources).encode()).hexdigest()


@functools.cache
def load(key: str, value: str) -> UserCode:
    """What `key`=`value` names. Raises ConfigError: a module or a name in it that is not there, and
    whatever the module raises while it is imported."""
    start = f"{key}={value}"
    place, _, name = value.rpartition(":")
    require(
        place != "" and name != "",
        f"{start}: write MODULE:NAME, such as my_module:my_function, or FILE.py:NAME",
    )
    if place.endswith(".py"):
        path = Path(place).expanduser()
        if str(path.parent.resolve()) not in sys.path:
            sys.path.append(str(path.parent.resolve()))  # for what it imports from beside it
        module = import_file(path, f"{start}: ")
    else:
        module = _import_module(place, start)
    if not hasattr(module, name):
        own = {n: x for n, x in vars(module).items() if _module_of(x) == module.__name__}
        kind = inspect.isclass if key == "controller.name" else inspect.isfunction
        offered = [n for n, x in own.items() if kind(x)]
        where = f"{place} ({module.__file__})" if _has_file(module) else place
        require_known(f"{start}: {where} has no {name}", name, offered)
    require(
        _has_file(module),
        f"{start}: {place} has no source file, and the run could not be repeated: put it into one",
    )
    files = {name: path.read_bytes() for name, path in _sources(module).items()}
    return UserCode(getattr(module, name), _file(module), files)


def _import_module(name: str, start: str) -> ModuleType:
    here, found = str(Path.cwd()), None
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)  # where a console script was started, not `python -m`
    if name in sys.modules:
        return sys.modules[name]
    importlib.invalidate_caches()  # the file may be as new as the process
    with errors_of(None, f"{start}: "):  # of the packages that hold the module
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):
                raise
    if found is None:
        fix = did_you_mean(name, [path.stem for path in Path.cwd().glob("*.py")])
        if "/" in name:
            fix = f"; a file is named with its ending, {name}.py:{start.rpartition(':')[2]}"
        raise ConfigError(
            f"{start}: no module {name} in the current directory, {here}, or on the Python "
            f"path{fix}"
        )
    if (loaded := _loaded(found.origin)) is not None:
        return loaded
    with errors_of(found.origin, f"{start}: "):
        return importlib.import_module(name)


def import_file(path: Path, start: str = "") -> ModuleType:
    """The module of a file, run once in a process. Raises ConfigError that begins with `start`."""
    if not path.is_file():
        names = [str(other) for other in path.parent.glob("*.py")]
        raise ConfigError(f"{start}{path}: no such file{did_you_mean(str(path), names)}")
    path = path.resolve()
    if (loaded := _loaded(str(path))) is not None:
        return loaded
    # its path as its name: there is no other of that name
    spec = importlib.util.spec_from_file_location(str(path), path)
    assert spec is not None and spec.loader is not None, "the name ends in .py"
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        with errors_of(path, start):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    return module


def _loaded(path: str | None) -> ModuleType | None:
    """The module of this file, if it is there already: by another name, or as the program itself.
    What it registers must not be registered twice."""
    modules = list(sys.modules.values()) if path else []
    return next((one for one in modules if getattr(one, "__file__", None) == path), None)


@contextmanager
def errors_of(path: str | Path | None, start: str = "") -> Iterator[None]:
    """What the code of a file raises becomes a ConfigError that begins with `start` and names the
    line."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else None)
        where = "" if path is None else f"{path}, line {line}: " if line else f"{path}: "
        raise ConfigError(f"{start}{where}{type(error).__name__}: {error}") from None


def _sources(module: ModuleType) -> dict[str, Path]:
    """The files of a module and of what it imports from its folder (from its package, if it is in
    one), and so on. What a function imports when it is called is not there yet."""
    first = _file(module)
    root = scope = first.parent
    while (root / "__init__.py").is_file():
        scope, root = root, root.parent
    libraries = [folder for folder in LIBRARIES if folder not in scope.parents]
    found, waiting = {first}, [module]
    while waiting:
        for name in _imported(waiting.pop()):
            other = sys.modules.get(name)
            if other is None or other.__name__.partition(".")[0] in OURS or not _has_file(other):
                continue
            path = _file(other)
            library = any(folder in path.parents for folder in libraries)
            if scope in path.parents and not library and path not in found:
                found.add(path)
                waiting.append(other)
    return {path.relative_to(root).as_posix(): path for path in sorted(found)}


def _imported(module: ModuleType) -> Iterator[str]:
    """The names that a module's source imports, and those of the packages that these are in."""
    path, package = _file(module), module.__package__ or ""
    nodes = ast.walk(ast.parse(path.read_bytes())) if path.suffix == ".py" else ()
    for node in nodes:
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            name = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names = [f"{name}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            yield from (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _module_of(content: Any) -> str | None:
    name = getattr(content, "__module__", None)
    return name if isinstance(name, str) else None


def _has_file(module: ModuleType) -> bool:
    return getattr(module, "__file__", None) is not None


def _file(module: ModuleType) -> Path:
    return Path(module.__file__ or "").resolve()
