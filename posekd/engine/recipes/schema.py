"""Dataclasses as the only schema: turns nested mappings into settings, or raises a clear error.

jsonargparse checks and converts the types; this file words the error messages.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser

from posekd.files import nearest

Schema = Mapping[str, Any]
"""Key -> type, a dataclass for a group. What `typing.get_type_hints` gives for a dataclass."""

_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
_PLURALS = {int: "whole numbers", float: "numbers", str: "texts"}


def describe(hint: Any) -> str:
    """A type in words: `a whole number`, `one of 'adam', 'sgd'`, `2 numbers`, `text or null`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, args))}"
    if origin in (Union, types.UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is tuple and args and args[-1] is not ...:
        return f"a list of {len(args)} {_PLURALS.get(args[0], 'values')}"
    if origin in (list, tuple):
        return f"a list of {_PLURALS.get(args[0], 'values')}"
    if origin is dict or is_dataclass(hint):
        return "a group of settings"
    return _WORDS.get(hint, str(hint))


def members(hint: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def group_of(hint: Any) -> type | None:
    """The dataclass in a type, if there is one."""
    return next((m for m in members(hint) if isinstance(m, type) and is_dataclass(m)), None)


def hints_of(group: type) -> dict[str, Any]:
    """Key -> type of a dataclass."""
    hints = typing.get_type_hints(group)
    return {f.name: hints[f.name] for f in fields(group)}


def _required(group: type) -> set[str]:
    return {f.name for f in fields(group) if f.default is MISSING and f.default_factory is MISSING}


def check_keys(values: Any, schema: Schema, prefix: str = "") -> None:
    """Refuses keys that the schema does not have, and groups that lack one.

    Args:
        values: what was read: nested mappings.
        schema: the keys and types that they should have.
        prefix: dotted path of `values`.

    Raises:
        ValueError: an unknown or missing key, a value where a group belongs, or null where it has no meaning.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix or 'a recipe'} must be a group of settings, got {values!r}")
    for key, value in values.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if key not in schema:
            raise ValueError(f"unknown key {path!r}{nearest(str(key), schema)}")
        if value is None and not {type(None), Any} & set(members(schema[key])):
            raise ValueError(f"{path} is empty; it must be {describe(schema[key])}")
        group = group_of(schema[key])
        if group is not None and value is not None:
            check_keys(value, hints_of(group), path)
            for needed in sorted(_required(group) - set(value)):
                raise ValueError(f"{path}.{needed} is missing; it must be {describe(hints_of(group)[needed])}")


def convert(values: Mapping[str, Any], schema: Schema, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Turns nested mappings into the objects of a schema.

    Args:
        values: nested mappings, keys already checked.
        schema: key -> type.
        defaults: value of a key that is not given; a key without one must be given.

    Returns:
        Key -> converted value; a dataclass instance for each group.

    Raises:
        ValueError: a missing key, a wrong type, or a value that a dataclass refuses.
    """
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    given: dict[str, Any] = {}
    result = dict(defaults)
    for key, hint in schema.items():
        if key not in values:
            if key not in defaults:
                raise ValueError(f"{key} is missing; it must be {describe(hint)}")
        elif values[key] is None:
            result[key] = None
        else:
            group = group_of(hint)
            if group is None:
                parser.add_argument(f"--{key}", type=hint)
            else:
                parser.add_class_arguments(group, key)
            given[key] = values[key]
    try:
        parsed = parser.parse_object(given)
    except (ArgumentError, TypeError) as error:
        raise ValueError(_explain(str(error), given, schema)) from None
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return {**result, **{key: instantiate(parsed)[key] for key in given}}


def _explain(message: str, values: Mapping[str, Any], schema: Schema) -> str:
    """The message of jsonargparse about a key, in words and with the value; its own text if it names no key."""
    named = re.search(r'key "([\w.]+)"', message)
    if named is None:
        return " ".join(message.split())
    key = named[1]
    value: Any = values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else value
    return f"{key} must be {describe(_lookup_hint(key, schema))}, got {value!r}"


def _lookup_hint(key: str, schema: Schema) -> Any:
    first, *rest = key.split(".")
    hint = schema[first]
    for part in rest:
        group = group_of(hint)
        hint = hints_of(group)[part] if group else Any
    return hint
