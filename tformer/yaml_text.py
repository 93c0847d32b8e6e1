"""YAML as plain Python and back: safe, with the numbers of YAML 1.2. Knows nothing of settings."""

import re
from collections.abc import Hashable
from typing import Any

import yaml

from tformer.errors import RequestError


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2 (`1e-3` is one), no duplicate keys and no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.constructor.ConstructorError(
                None, None, "aliases have no use here", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node)
            if isinstance(key, Hashable):  # what is not is refused below
                if key in seen:
                    problem = f"{key!r} is given twice"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


# 010 is ten, as in YAML 1.2, not eight.
def _decimal(loader: Any, node: Any) -> int:
    return int(loader.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _decimal)


class _Dumper(yaml.SafeDumper):
    """Quotes text that this or another reader would take for a number; writes no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    first: yaml.SafeDumper.yaml_implicit_resolvers.get(first, [])
    + _Loader.yaml_implicit_resolvers.get(first, [])
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def parse_yaml(text: str, source: str) -> Any:
    """One YAML document as plain Python; `source` is the name its errors carry."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise RequestError(f"{source} is nested too deeply to be a configuration") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # !!bool maybe: KeyError
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        problem = getattr(error, "problem", None) or (str(error) or "?").splitlines()[0]
        raise RequestError(
            f"{source}{line} is not YAML",
            str(problem),
            "expected settings under their section, such as train: {steps: 100}",
        ) from None


def dump_yaml(values: dict[str, Any]) -> str:
    """Plain Python as YAML, keys in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
