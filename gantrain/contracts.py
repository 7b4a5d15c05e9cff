"""The contract of a kind of plug-in, and how a class or object that does not inherit from its base is adapted.

The base class of a kind states its contract: abstract methods are required, everything else is optional and has its one
default there. gantrain's own plug-ins inherit from it. A class from outside need not: `Contract.adapt_class` gives a
subclass of both, and `Contract.adapt` does the same for an object that a program has made.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from gantrain.errors import InvalidField, UserError, one_line
from gantrain.schedule import Schedule
from gantrain.type_words import describe_type

T = TypeVar("T")
MISSING = object()
COMPUTED = (property, functools.cached_property)
AT_THE_OBJECT = (*COMPUTED, types.MemberDescriptorType)  # a class has a descriptor, and only its objects have the value (`slots=True`)


@dataclass(frozen=True)
class Contract(Generic[T]):
    """The required and optional parts of the plug-ins of a kind.

    Attributes:
        kind: its name in messages, such as "batch policy".
        base: the base class `T`. Its abstract methods are required; its other public methods, properties and annotated
            attributes are optional.
        one_of: methods of which a class must define at least one.
    """

    kind: str
    base: type
    one_of: tuple[str, ...] = ()

    @functools.cached_property
    def required(self) -> tuple[str, ...]:
        """Names of the methods that every class must define, in the order of the base class."""
        return tuple(name for name, part in vars(self.base).items() if is_abstract(part))

    @functools.cached_property
    def methods(self) -> tuple[str, ...]:
        """Names of all parts that are methods."""
        public = (name for name, part in vars(self.base).items() if inspect.isfunction(part) and not name.startswith("_"))
        return tuple(dict.fromkeys((*self.required, *public)))

    @functools.cached_property
    def values(self) -> dict[str, Any]:
        """Names and types of all parts that are values."""
        properties = {name: part.fget for name, part in vars(self.base).items() if isinstance(part, property)}
        return typing.get_type_hints(self.base) | {name: typing.get_type_hints(get)["return"] for name, get in properties.items()}

    def require(self, cls: type, name: str) -> None:
        """Refuse a class that lacks a required part or has a part of the wrong type.

        Args:
            cls: the class of a plug-in.
            name: its name in messages.

        Raises:
            UserError: names the part.
        """
        who = f"{self.kind} {name!r}"
        given = {part: found for part in (*self.methods, *self.values) if (found := self.part_of(cls, part)) is not MISSING}
        for part in self.required:
            if part not in given:
                raise UserError(f"{who} has no method {part!r}, which every {self.kind} has")
        if self.one_of and not any(part in given for part in self.one_of):
            raise UserError(f"{who} has no method {' or '.join(map(repr, self.one_of))}; every {self.kind} has one of them")
        for field in vars(cls).get("__dataclass_fields__", {}).values():
            if isinstance(field.default, property):  # a property of the base, which dataclasses take for the default
                raise UserError(f"{who}: {field.name} must have a default, or be left out")
        for part, found in given.items():
            if isinstance(found, AT_THE_OBJECT):
                continue
            if part in self.methods and not callable(getattr(cls, part)):
                raise UserError(f"{who}: {part} must be a method, got {found!r}")
            if part in self.methods and inspect.isfunction(found):
                self.require_signature(found, part, who)
            if part in self.values and not fits(found, self.values[part]):
                got = "a method" if inspect.isroutine(found) else repr(found)
                raise UserError(f"{who}: {part} must be {describe_type(self.values[part])}, got {got}")

    def require_signature(self, method: types.FunctionType, part: str, who: str) -> None:
        """Refuse a method that cannot be called with the arguments of the base's.

        Raises:
            UserError: names the method and its arguments.
        """
        wanted = list(inspect.signature(getattr(self.base, part)).parameters)
        try:
            inspect.signature(method).bind(*wanted)
        except TypeError:
            got = ", ".join(list(inspect.signature(method).parameters)[1:])
            raise UserError(f"{who}: {part} must take ({', '.join(wanted[1:])}), got ({got})") from None

    def part_of(self, cls: type, part: str) -> Any:
        """What a class itself, and not the base, defines as a part; `MISSING` if it defines nothing."""
        found = inspect.getattr_static(cls, part, MISSING)
        return MISSING if is_abstract(found) or found is inspect.getattr_static(self.base, part, None) else found

    def adapt_class(self, cls: type, name: str) -> type[T]:
        """A class with all parts of the contract: the class itself if it inherits from the base, else a subclass of both.

        The subclass has the module and the qualified name of the class, so that its name leads back to the class.

        Args:
            cls: the class of a plug-in.
            name: its name in messages.

        Raises:
            UserError: a part is missing or has the wrong type, or the class cannot be combined with the base.
        """
        self.require(cls, name)
        try:
            return typing.cast("type[T]", cls if self.base in cls.__mro__ else combined(cls, self.base))
        except TypeError as error:
            remedy = f"inherit from {self.base.__module__}.{self.base.__qualname__}"
            raise UserError(f"{self.kind} {name!r} cannot be combined with its base class ({one_line(error)}); {remedy}") from error

    def adapt(self, plugin: Any) -> T:
        """An object with all parts of the contract: the object itself if its class inherits from the base.

        Otherwise a frozen dataclass is copied into its adapted class. Any other object gets a proxy, which passes on the current
        parts of the object and has the defaults for the rest. The object is not changed.

        Raises:
            InvalidField: a value has the wrong type.
            UserError: a required part is missing or has the wrong type.
        """
        adapted, name = plugin, type(plugin).__name__
        if isinstance(plugin, self.base):
            self.require(type(plugin), name)
        elif is_frozen_dataclass(plugin):
            adapted = copied(plugin, self.adapt_class(type(plugin), name))
        else:
            cls: Any = proxy_class(plugin, self.base, (*self.methods, *self.values))
            self.require(cls, name)
            adapted = cls(plugin, self)
        for part in self.methods:
            try:
                found = getattr(adapted, part)
            except Exception as error:  # of a property in the place of a method
                raise UserError(f"{self.kind} {name!r}: {part} must be a method, and cannot be read ({one_line(error)})") from error
            if not callable(found):
                raise InvalidField(part, found, "must be a method")
        for part, hint in self.values.items():
            if isinstance(inspect.getattr_static(type(plugin), part, None), COMPUTED):
                continue
            value = getattr(plugin, part, MISSING)
            if value is not MISSING and not fits(value, hint):
                raise InvalidField(part, value, f"must be {describe_type(hint)}")
        return adapted


def is_abstract(part: Any) -> bool:
    """Whether a part of a class is declared but not defined."""
    return getattr(part, "__isabstractmethod__", False) is True


@functools.cache
def combined(cls: type, base: type) -> type:
    """A subclass of both, in which the parts of `cls` come first."""
    fields: Mapping[str, Any] = vars(cls).get("__dataclass_fields__", {})
    # A field without a default leaves no attribute on its class; a property of the base would then refuse its value.
    shadows = {name: None for name in fields if isinstance(inspect.getattr_static(base, name, None), property) and name not in dir(cls)}
    return types.new_class(cls.__name__, (cls, base), exec_body=lambda names: names.update({**origin_of(cls), **shadows}))


def is_frozen_dataclass(plugin: Any) -> bool:
    """Whether an object is of a frozen dataclass."""
    params = inspect.getattr_static(type(plugin), "__dataclass_params__", None)
    return params is not None and params.frozen


def copied(plugin: Any, cls: type[T]) -> T:
    """An instance of a subclass of the plug-in's class that has all its values."""
    copy = object.__new__(cls)
    names = [f.name for f in dataclasses.fields(plugin)]
    for name in [*names, *vars(plugin)] if "__dict__" in dir(plugin) else names:  # `slots=True` has no __dict__
        object.__setattr__(copy, name, getattr(plugin, name))
    return copy


class Proxy:
    """A stand-in for another object, with the attributes of that object; see `Contract.adapt`."""

    def __init__(self, plugin: Any, contract: Contract):
        self.__dict__.update(_plugin=plugin, _contract=contract)

    def __getattr__(self, name: str) -> Any:  # called for attributes that the class does not have
        if name in ("_plugin", "_contract"):  # of a copy in the making, which has no attributes yet
            raise AttributeError(name)
        return getattr(self._plugin, name)

    def __repr__(self) -> str:
        return repr(self._plugin)

    def __reduce__(self) -> tuple[Any, ...]:  # for worker processes that are not forked: the class is in no module
        return self._contract.adapt, (self._plugin,)


def proxy_class(plugin: Any, base: type, parts: Sequence[str]) -> type:
    """A class of proxies for one object: parts that the object has come from it, and the others from `base`."""

    def passed_on(part: str) -> property:
        return property(lambda self: getattr(self._plugin, part))

    found = {part: passed_on(part) for part in parts if getattr(plugin, part, MISSING) is not MISSING}
    return types.new_class(type(plugin).__name__, (Proxy, base), exec_body=lambda names: names.update({**origin_of(type(plugin)), **found}))


def origin_of(cls: type) -> dict[str, Any]:
    """Attributes that give a generated class the name of another class."""
    return {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}


def require_numbers(section: Any) -> None:
    """Refuse text, a tensor or a boolean where a dataclass has a field for a number, and anything but a bool where it has one for that.

    A field that takes a number or a schedule is one for a number.

    A tensor may be changed later, text cannot be compared, and True would count as 1. Other types of fields are left alone.

    Raises:
        InvalidField: for the first such field.
    """
    with suppress(NameError):  # an annotation of somebody's class that is no name here
        hints = typing.get_type_hints(type(section))
        for field in dataclasses.fields(section):
            hint, value = hints[field.name], getattr(section, field.name)
            kinds = set(typing.get_args(hint) or (hint,))
            if kinds & {int, float, bool} and kinds <= {int, float, bool, Schedule, type(None)} and not fits(value, hint):
                raise InvalidField(field.name, value, f"must be {describe_type(hint)}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; covers the types that contracts use."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return any(value is one or (type(value) is type(one) and value == one) for one in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in arguments)
    if hint in (int, float):
        return isinstance(value, numbers.Integral if hint is int else numbers.Real) and not isinstance(value, bool)
    if origin is Sequence:
        return isinstance(value, Sequence) and not isinstance(value, str) and all(fits(one, arguments[0]) for one in value)
    return isinstance(value, origin or hint)
