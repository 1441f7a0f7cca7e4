"""From a model's text to the program in it, as evalplus 0.3.1 does (evalplus/sanitize.py).

The longest run of lines that is valid Python (extract.py); of that, by tree-sitter's grammar, the
imports, and of functions, classes and assignments at its top level those that the wanted function
needs. The first of two definitions counts; a function without `return` and anything decorated are
left out.
"""

from collections.abc import Iterator

import tree_sitter_python
from tree_sitter import Language, Node, Parser

from adaptsft.evals.code.extract import SECONDS, code_extract

PYTHON = Language(tree_sitter_python.language())


def sanitize(text: str, entry_point: str | None = None, seconds: float = SECONDS) -> str:
    """The program in `text`: its imports, and all definitions or those `entry_point` needs.

    Raises OutOfTime where it is not found in `seconds` of CPU.
    """
    code = code_extract(text, seconds)
    try:
        encoded = code.encode()
    except UnicodeEncodeError:  # a lone surrogate: no program, the first line of the answer
        return code
    return _needed(encoded, entry_point).decode().strip() or code


def _needed(code: bytes, entry_point: str | None) -> bytes:
    imports: list[Node] = []
    definitions: dict[str | None, Node] = {}
    for node in Parser(PYTHON).parse(code).root_node.children:
        if node.type in ("import_statement", "import_from_statement"):
            imports.append(node)
        elif node.type == "class_definition" or (
            node.type == "function_definition" and _returns(node)
        ):
            definitions.setdefault(_name(node), node)
        elif node.type == "expression_statement" and node.children[0].type == "assignment":
            definitions.setdefault(_name(node.children[0]), node.children[0])
    wanted = _reachable(entry_point, definitions) if entry_point else definitions.keys()
    kept = imports + [node for name, node in definitions.items() if name in wanted]
    return b"\n".join(code[node.start_byte : node.end_byte] for node in kept)


def _reachable(entry_point: str, definitions: dict[str | None, Node]) -> set[str]:
    """Names that the entry point uses, and those that these use: every identifier counts."""
    found, queue = {entry_point}, [entry_point]
    while queue:
        node = definitions.get(queue.pop())
        for name in _identifiers(node) if node is not None else ():
            if name not in found:
                found.add(name)
                queue.append(name)
    return found


def _nodes(node: Node) -> Iterator[Node]:
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children)


def _identifiers(node: Node) -> set[str]:
    return {_text(child) for child in _nodes(node) if child.type == "identifier"}


def _returns(node: Node) -> bool:
    return any(child.type == "return_statement" for child in _nodes(node))


def _name(node: Node) -> str | None:
    """The first identifier among a definition's own parts; None for `a, b = …`."""
    return next((_text(child) for child in node.children if child.type == "identifier"), None)


def _text(node: Node) -> str:
    return (node.text or b"").decode()
