"""Reading a run's `config.yaml` as plain values: fast, without torch, and in bounded time and memory whatever the file contains.

The values are those of PyYAML's `safe_load`. That loader copies what a merge key (`<<`) takes, so that a text of 1 KB can ask for 2^25
copies; it recurses where a file nests, in C without a limit; and its Python variant takes 6 ms for a configuration. Here the events of
libyaml, if PyYAML has it, become values without recursion, and an alias is the same object again.
"""

from __future__ import annotations

from typing import Any

import yaml

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DEEPEST = 100  # levels of nesting; a configuration has five
MERGE = "tag:yaml.org,2002:merge"
TEXT = "tag:yaml.org,2002:str"
RESOLVER = yaml.resolver.Resolver()
CONSTRUCTOR = yaml.constructor.SafeConstructor()
NOT_YET = object()  # a mapping that has no key waiting for a value


class Collection:
    """A list or mapping that is being read.

    Attributes:
        value: what it is so far.
    """

    def __init__(self, value: Any):
        self.value = value
        self._key: Any = NOT_YET
        self._merged: list[Any] = []

    def add(self, value: Any, is_merge: bool) -> None:
        """Add the next item, or the next key or value.

        Raises:
            YAMLError: it cannot be a key, or cannot be merged.
        """
        if isinstance(self.value, list):
            self.value.append(value)
        elif self._key is NOT_YET:
            if isinstance(value, (dict, list)):
                raise yaml.YAMLError("a key that is a list or a mapping")
            self._key = MERGE if is_merge else value
        elif self._key == MERGE:
            self._merged += value if isinstance(value, list) else [value]
            self._key = NOT_YET
        else:
            self.value[self._key] = value
            self._key = NOT_YET

    def close(self) -> None:
        """Take what merge keys give: own keys win, then those that are merged first.

        Raises:
            YAMLError: something other than a mapping would be merged.
        """
        if not self._merged:
            return
        if not all(isinstance(one, dict) for one in self._merged):
            raise yaml.YAMLError("a merge key needs mappings")
        own = dict(self.value)
        self.value.clear()  # in PyYAML's order: what is merged, then what is written
        for one in [*reversed(self._merged), own]:
            self.value.update(one)


def load_plain(text: bytes, shallow: bool = False) -> Any:
    """The values of a YAML text of one document.

    Args:
        text: in UTF-8.
        shallow: leave what is below the first level as the texts that are written there, which takes half the time.

    Raises:
        YAMLError, ValueError: it is not YAML, has more than one document, or nests more than `DEEPEST` levels.
    """
    loader = Loader(text)
    try:
        return read_document(loader, shallow)
    finally:
        loader.dispose()


def read_document(loader: Any, shallow: bool) -> Any:
    """The value of the only document of a loader; `shallow` as in `load_plain`."""
    top = Collection([])
    open_ones, anchors = [top], dict[str, Any]()
    value: Any
    while loader.check_event():
        event = loader.get_event()
        if isinstance(event, yaml.ScalarEvent):
            value, is_merge = (event.value, False) if shallow and len(open_ones) > 2 else read_scalar(event)
            if event.anchor:
                anchors[event.anchor] = value
            open_ones[-1].add(value, is_merge)
            continue
        if isinstance(event, yaml.CollectionStartEvent):
            if len(open_ones) > DEEPEST:
                raise yaml.YAMLError("too deeply nested")
            value = {} if isinstance(event, yaml.MappingStartEvent) else []
            if event.tag and not event.tag.startswith("tag:yaml.org,2002:"):
                raise yaml.YAMLError(f"unknown tag {event.tag}")
            if event.anchor:
                anchors[event.anchor] = value
            open_ones.append(Collection(value))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            done = open_ones.pop()
            done.close()
            value = done.value
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise yaml.YAMLError(f"unknown alias {event.anchor}")
            value = anchors[event.anchor]
        else:
            continue
        open_ones[-1].add(value, is_merge=False)
    if len(top.value) > 1:
        raise yaml.YAMLError("more than one document")
    return top.value[0] if top.value else None


def read_scalar(event: yaml.ScalarEvent) -> tuple[Any, bool]:
    """(the value of a scalar, whether it is a merge key)."""
    tag = event.tag or RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    if tag == TEXT:
        return event.value, False
    if tag == MERGE:
        return event.value, True
    node = yaml.ScalarNode(tag, event.value)
    return CONSTRUCTOR.yaml_constructors.get(tag, CONSTRUCTOR.yaml_constructors[None])(CONSTRUCTOR, node), False
