"""YAML documents that remember on which line each value stands.

A recipe is written by hand, so what is wrong with it must be shown where it was written. PyYAML
gives either plain data (no lines) or a tree of nodes (lines, no data); this module keeps both.
It also refuses what YAML lets pass in silence: a key written twice, where the last would win, and
a document that contains itself.
"""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from zeitgeist.errors import RecipeInvalid

Path = Sequence[str | int]
# What YAML takes for a line; str.splitlines knows more ends than it does.
_ENDS = r"\r\n\x85\u2028\u2029"
_LINE = re.compile(rf"[^{_ENDS}]*(?:\r\n|[{_ENDS}])|[^{_ENDS}]+$")


@dataclass(frozen=True)
class Document:
    """One YAML document as plain data, with the lines it was written on.

    Parameters
    ----------
    data
        What the document says.
    text
        The document as it was written.
    origin
        Where it came from: a file name, or a word for data that never was a file.
    node
        The tree PyYAML composed; none for data that never was text.
    """

    data: Any
    text: str
    origin: str
    node: yaml.Node | None = None

    def line(self, path: Path = ()) -> int | None:
        """The line, counted from 1, of the value at ``path``, or of what holds it.

        Keys count as the place of their value, so that an unknown key is shown where it stands.

        Examples
        --------
        >>> document, = read_documents("a: 1\\nb:\\n  - 2\\n  - c: 3\\n")
        >>> document.line(["b", 1, "c"]), document.line(["b", 0]), document.line(["missing"])
        (4, 3, 1)
        """
        node, line = self.node, None if self.node is None else self.node.start_mark.line + 1
        for step in path:
            child = _child(node, step)
            if child is None:
                break
            node, line = child
        return line

    def where(self, path: Path = ()) -> str:
        """The origin for an error about the value at ``path``: ``file:line``."""
        line = self.line(path)
        return self.origin if line is None else f"{self.origin}:{line}"


def _child(node: yaml.Node | None, step: str | int) -> tuple[yaml.Node, int] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        value = node.value[step]
        return value, value.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        for key, value in reversed(node.value):
            if key.value == str(step):
                return value, key.start_mark.line + 1
        for key, value in node.value:  # "<<: *anchor" merges another mapping into this one
            if key.tag == "tag:yaml.org,2002:merge":
                merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
                for mapping in merged:
                    if (found := _child(mapping, step)) is not None:
                        return found
    return None


def read_documents(text: str, origin: str = "recipe") -> tuple[Document, ...]:
    """All documents of a YAML text; those that hold nothing are left out.

    Parameters
    ----------
    text
        YAML, one or several documents divided by ``---``.
    origin
        What errors call the text: its file name.

    Raises
    ------
    RecipeInvalid
        YAML that cannot be read, a key given twice, or a document that contains itself.

    Examples
    --------
    >>> [document.data for document in read_documents("a: 1\\n---\\nb: 2\\n")]
    [{'a': 1}, {'b': 2}]
    """
    lines = _LINE.findall(text)
    documents: list[Document] = []
    start = 0
    loader = None
    try:
        loader = yaml.SafeLoader(text)
        while loader.check_node():
            node = loader.get_node()
            if node is None:
                continue
            _check_tree(node, origin)
            data = loader.construct_document(node)
            mark = loader.peek_event().start_mark  # type: ignore[no-untyped-call]  # untyped stub
            end = mark.line + (mark.column > 0)
            if data is not None:
                written = "".join(line for line in lines[start:end] if not line.startswith("---"))
                documents.append(Document(data, written, origin, node))
            start = end
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # Beside YAML's own: a date in no calendar, brackets a thousand deep.
        raise _unreadable(error, origin, text) from error
    finally:
        if loader is not None:
            loader.dispose()
    return tuple(documents)


def in_memory(data: Any, origin: str = "recipe") -> Document:
    """A document for data that never was text; its text is the YAML that would say the same."""
    if not isinstance(data, Mapping):
        return Document(data, "", origin)
    return Document(data, yaml.safe_dump(dict(data), sort_keys=False), origin)


def _check_tree(node: yaml.Node, origin: str) -> None:
    """Refuse keys given twice and nodes that hold themselves.

    An alias shares its anchor's node, so each node is looked at once however often it is named:
    a small text that unfolds to billions of values costs nothing.
    """
    finished: set[int] = set()
    open_above: set[int] = set()
    pending: list[tuple[yaml.Node, bool]] = [(node, False)]
    while pending:
        current, leaving = pending.pop()
        if leaving:
            open_above.discard(id(current))
            finished.add(id(current))
            continue
        if id(current) in open_above:
            where = f"{origin}:{current.start_mark.line + 1}"
            raise RecipeInvalid("an anchor that contains itself", origin=where, mend="write it out")
        if id(current) in finished or isinstance(current, yaml.ScalarNode):
            continue
        open_above.add(id(current))
        pending.append((current, True))
        if isinstance(current, yaml.MappingNode):
            _check_keys(current, origin)
            pending += [(value, False) for _, value in current.value]
        else:
            pending += [(value, False) for value in current.value]


def _check_keys(node: yaml.MappingNode, origin: str) -> None:
    first: dict[Hashable, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise RecipeInvalid(
                "a key that is a list or a mapping", origin=f"{origin}:{line}", mend="give a word"
            )
        if key.value in first and key.value != "<<":
            raise RecipeInvalid(
                f"the key {key.value!r} is given twice, first on line {first[key.value]}",
                origin=f"{origin}:{line}",
                mend="keep one of them",
            )
        first[key.value] = line


def _unreadable(error: Exception, origin: str, text: str) -> RecipeInvalid:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    where = origin if mark is None else f"{origin}:{mark.line + 1}"
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    if isinstance(error, yaml.reader.ReaderError):
        where = f"{origin}:{len(_LINE.findall(text[: error.position] + '.'))}"
    return RecipeInvalid(
        f"the YAML cannot be read: {problem}",
        origin=where,
        mend="indent with spaces, and put names with : or # into quotes",
    )
