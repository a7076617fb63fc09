"""Command lines from typed dataclasses: flags with dashes, `--config FILE` in YAML, errors that say where and next.

In: a frozen dataclass whose fields carry a docstring each, and the arguments. Out: an instance of it. The dataclass
checks its own values and raises `ValueError` for people; that message is shown as it is.
"""

import argparse
import dataclasses
import difflib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

__all__ = ["parse_dataclass"]

T = TypeVar("T")


def parse_dataclass(cls: type[T], *, prog: str, description: str, arguments: Sequence[str] | None = None) -> T:
    """Build a `cls` from the command line; on bad usage print what is wrong and exit with code 2.

    Args:
        cls: a dataclass; a field of type `tuple[str, ...]` takes one or more values, one of type `bool` none. A field
            whose name is Python's own ends in `_`, its setting does not.
        prog: the command's name in messages.
        description: what the command does, for `--help`.
        arguments: in place of `sys.argv[1:]`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog=prog, description=description, formatter_class=argparse.HelpFormatter)
    parser.add_argument(
        "--config",
        action="config",
        metavar="FILE",
        help="YAML file with the same settings (names with underscores). Flags after it on the command line win.",
    )
    hints = get_type_hints(cls)
    texts = {entry.arg_name: entry.description or "" for entry in docstring_parser.parse_from_object(cls).params}
    items = dataclasses.fields(cls)  # type: ignore[arg-type]
    for item in items:
        _add_field(parser, item, hint=hints[item.name], text=texts.get(item.name, ""))
    _refuse_unknown_flags(parser, given)
    namespace = parser.parse_args(given)
    try:
        return cls(**{item.name: getattr(namespace, _setting(item)) for item in items})
    except ValueError as error:
        parser.error(str(error))


class _Parser(ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong without a page of usage, and where the page is."""
        del ex
        text = message.replace('Parser key "', 'Setting "')
        sys.stderr.write(f"{self.prog}: {text}\nSee {self.prog} --help for every setting with its unit and default.\n")
        raise SystemExit(2)


def _add_field(parser: ArgumentParser, item: "dataclasses.Field[Any]", *, hint: Any, text: str) -> None:
    flag = "--" + _setting(item).replace("_", "-")
    text = " ".join(text.split()).replace("%", "%%")
    if hint is bool:
        parser.add_argument(flag, action="store_true", default=item.default, help=text)
        return
    if hint == tuple[str, ...]:
        default = list(item.default) if isinstance(item.default, tuple) else []
        metavar = item.name.rsplit("_", maxsplit=1)[-1].removesuffix("s").upper()
        parser.add_argument(flag, nargs="+", type=str, default=default, metavar=metavar, help=text)
        return
    if "Default" not in text and item.default not in ("", None):
        text += f" Default: {item.default}."
    choices = getattr(hint, "__args__", ()) if "Literal" in str(hint) else ()
    metavar = "{" + ",".join(choices) + "}" if choices else _setting(item).rsplit("_", maxsplit=1)[-1].upper()
    parser.add_argument(flag, type=hint, default=item.default, metavar=metavar, help=text)


def _setting(item: "dataclasses.Field[Any]") -> str:
    return item.name.rstrip("_")


def _refuse_unknown_flags(parser: ArgumentParser, given: Sequence[str]) -> None:
    known = [option for action in parser._actions for option in action.option_strings]
    for word in given:
        flag = word.split("=", 1)[0]
        if flag == "--":
            return
        if flag.startswith("--") and flag not in known:
            near = difflib.get_close_matches(flag.replace("_", "-"), known, n=1)
            hint = f"did you mean {near[0]}?" if near else "there is no such setting."
            parser.error(f"Got {flag}; {hint}")
