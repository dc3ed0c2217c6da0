"""Click commands of this toolkit: their output goes to safe streams, and options stand under headings."""

from collections.abc import Callable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import click

from cli.common.streams import safe_streams

F = TypeVar("F", bound=Callable[..., Any])

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
"""Context settings of all commands."""

_GENERAL = "Options"
_HEADINGS: WeakKeyDictionary[click.Parameter, str] = WeakKeyDictionary()


def option_group(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options to a command, in the order given."""

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def section(heading: str, *options: Callable[[F], F]) -> Callable[[F], F]:
    """Return a decorator that adds options to a command, which stand under a heading in its --help.

    Sections of one heading are joined; an option that has a heading already keeps it.
    """

    def add(command: F) -> F:
        before = {id(parameter) for parameter in _parameters(command)}
        command = option_group(*options)(command)
        for parameter in _parameters(command):
            if id(parameter) not in before:
                _HEADINGS.setdefault(parameter, heading)
        return command

    return add


def _parameters(command: object) -> list[click.Parameter]:
    """Return the parameters that decorators have added so far; click turns them into the command's."""
    return getattr(command, "__click_params__", [])


def heading_of(parameter: click.Parameter) -> str:
    """Return the heading of an option; "Options" where it has none of its own."""
    return _HEADINGS.get(parameter, _GENERAL)


class Command(click.Command):
    """A command whose output goes to safe streams, and whose options stand under headings; see `section`."""

    def main(self, *arguments: Any, **options: Any) -> Any:
        """Run the command; see `click.Command.main`."""
        with safe_streams():
            return super().main(*arguments, **options)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options under their headings; those without one come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                sections.setdefault(heading_of(parameter), []).append(record)
        general = sections.pop(_GENERAL, [])
        for heading, records in (*sections.items(), (_GENERAL, general)):
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)


class Group(Command, click.Group):
    """A group of such commands."""

    command_class = Command

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
