"""YAML as people write it, read in one way everywhere, and written so that it reads back the same.

The types are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), with numbers as JSON has
them: ``2e-5`` is a number, ``no``, ``on`` and ``2024-01-31`` are text, and so is ``010``, which may be part of a name
or a commit. PyYAML by itself reads YAML 1.1 and keeps only the last of keys given twice.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_INTEGER = r"(?:0|[1-9][0-9]*)"
_EXPONENT = r"[eE][-+]?[0-9]+"
_TYPES = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (rf"[-+]?{_INTEGER}|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    "float": (
        rf"[-+]?(?:\.[0-9]+(?:{_EXPONENT})?|{_INTEGER}(?:\.[0-9]*(?:{_EXPONENT})?|{_EXPONENT}))"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+.0123456789",
    ),
    "merge": (r"<<", "<"),  # of YAML 1.1, but settings that share lines are written with it
}


class _Loader(yaml.CSafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own name)

    def construct_document(self, node: yaml.Node) -> Any:
        self._refuse_duplicates(node, set())
        return super().construct_document(node)

    def _refuse_duplicates(self, node: yaml.Node, seen: set[int]) -> None:
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            return
        seen.add(id(node))
        lines: dict[Any, int] = {}
        for child in node.value:
            if not isinstance(node, yaml.MappingNode):
                self._refuse_duplicates(child, seen)
                continue
            key_node, value = child
            if isinstance(key_node, yaml.ScalarNode) and not key_node.tag.endswith(":merge"):
                key, line = self.construct_object(key_node), key_node.start_mark.line + 1
                if key in lines:
                    places = f"lines {lines[key]} and {line}" if lines[key] != line else f"line {line}"
                    raise yaml.YAMLError(f"the key {key_node.value!r} is given twice, in {places}; keep one of them")
                lines[key] = line
            self._refuse_duplicates(value, seen)


class _Dumper(yaml.SafeDumper):
    """Quotes what is text here and something else in YAML 1.1, for those who read it with another library."""


def _represent_text(dumper: _Dumper, text: str) -> yaml.Node:
    """PyYAML writes the line breaks that only Unicode has as they are, and they are read back as others."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, '"' if _UNICODE_BREAKS.search(text) else None)


_UNICODE_BREAKS = re.compile("[\x85\u2028\u2029]")
_Dumper.add_representer(str, _represent_text)
for _type, (_pattern, _first) in _TYPES.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_type}",
            re.compile(rf"^(?:{_pattern})$"),
            [*_first, *([""] if _type == "null" else [])],
        )


def read_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: it is not YAML, holds several documents, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (AttributeError, KeyError, ValueError) as error:  # what PyYAML raises for values like `!!int many`
        raise yaml.YAMLError(f"a value is not of its type: {error}") from error


def write_yaml(value: Any) -> str:
    """A YAML text that :func:`read_yaml` turns into ``value`` again."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
