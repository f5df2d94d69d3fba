"""Reading and writing run files: YAML with plain numbers, and the line of every key.

PyYAML follows YAML 1.1, where `5e-5` is text, `no` is false and `1:30` is ninety. Run files follow
YAML 1.2's core schema: a number is what Python would call one, only `true` and `false` are
booleans. Written files are quoted so that both readings agree.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from xtoken.errors import ConfigError

_FLOAT = re.compile(
    r"^(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
    r"|\.(?:nan|NaN|NAN))$"
)
_RESOLVERS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    ("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9]+$"), "-+0123456789"),
    ("tag:yaml.org,2002:float", _FLOAT, "-+.0123456789"),
    ("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), "~nN\0"),
    ("tag:yaml.org,2002:merge", re.compile(r"^<<$"), "<"),
)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(_tag, _pattern, ["" if c == "\0" else c for c in _first])
# YAML 1.1 reads 010 as eight and rejects 09; here both are what they look like.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


class _Dumper(yaml.SafeDumper):
    """Quotes what either YAML 1.1 or 1.2 would not read as text."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_yaml(text: str, source: str) -> tuple[Any, dict[str, int]]:
    """Return the value that `text` holds and the line (from 1) of each dotted key path.

    Raises ConfigError for broken YAML (with line and column) and for a key that stands twice.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is None:
            return None, lines
        _note_lines(node, "", lines, source)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {_describe(error)}.") from error
    finally:
        loader.dispose()


def dump_yaml_text(data: dict[str, Any]) -> str:
    """Return `data` as YAML, keys in their order."""
    text = _dump(data, allow_unicode=True)
    # PyYAML folds the rarer line breaks (U+0085, U+2028) into spaces unless they are escaped.
    return text if parse_yaml(text, "")[0] == data else _dump(data, allow_unicode=False)


def _dump(data: dict[str, Any], *, allow_unicode: bool) -> str:
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=allow_unicode, width=100)


def _note_lines(node: yaml.Node, path: str, lines: dict[str, int], source: str) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            name = str(key.value)
            below = f"{path}.{name}" if path else name
            if name in seen:
                raise ConfigError(
                    f"{source}, line {line}: the key {below} stands here a second time (first in "
                    f"line {seen[name]}); keep one of the two."
                )
            seen[name] = lines[below] = line
            _note_lines(value, below, lines, source)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            below = f"{path}.{index}"
            lines[below] = item.start_mark.line + 1
            _note_lines(item, below, lines, source)


def _describe(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return problem
    return f"{problem} (line {mark.line + 1}, column {mark.column + 1})"
