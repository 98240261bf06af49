"""The command `gateway`: serve (the default), check, dead-letters, version.

Exit codes: 0; 1 failed; 2 usage; 3 could not start, with one line that says why.
"""

import asyncio
import inspect
import logging
import os
import platform
from collections.abc import Callable
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from gateway import __version__, letters_command, logs
from gateway.log import LogCorruptError, LogUnavailableError
from gateway.settings import (
    Settings,
    SettingsError,
    effective,
    load,
    refusal,
    settings_table,
    unknown_names,
    warnings,
)
from gateway.workers import Worker, supervise

logger = logging.getLogger("gateway")

FAILED: Final = 1
USAGE: Final = 2
COULD_NOT_START: Final = 3
_GROUP_OPTIONS: Final = ("--help", "--install-completion", "--show-completion")
_START_ERRORS: Final = (LogCorruptError, LogUnavailableError, OSError)


class _ServeByDefault(TyperGroup):
    """Flags without a command are those of `serve`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in _GROUP_OPTIONS):
            args = ["serve", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ServeByDefault,
    help="A real-time order-event gateway. Without a command it serves; `gateway serve --help` lists the settings.",
    pretty_exceptions_enable=False,
)


def _options() -> list[inspect.Parameter]:
    """One flag for each setting, named like its variable. Settings reads the texts, so all say the same."""
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_annotation(name, f"{text} [default: {shown}]"),
        )
        for name, (_, shown, text) in zip(Settings.model_fields, settings_table(), strict=True)
    ]


def _annotation(name: str, help_text: str) -> Any:
    # Help is rich text, where a bracket opens a tag.
    option = typer.Option(
        f"--{name.replace('_', '-')}", help=help_text.replace("[", "\\["), show_default=False
    )
    return Annotated[bool | None if Settings.model_fields[name].annotation is bool else str | None, option]


def _with_settings(command: Callable[[Settings], int]) -> Callable[..., None]:
    """The command as typer calls it: with a flag for each setting, read and checked before it runs."""

    def run(**flags: str | bool | None) -> None:
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            settings = load(**given)
        except SettingsError as error:
            _complain(*error.lines)
            raise typer.Exit(USAGE) from None
        raise typer.Exit(_guarded(command, settings))

    run.__doc__ = command.__doc__
    run.__signature__ = inspect.Signature(_options())  # type: ignore[attr-defined]  # what typer reads
    run.__annotations__ = {each.name: each.annotation for each in _options()}
    return run


def _guarded(command: Callable[[Settings], int], settings: Settings) -> int:
    reason = refusal(settings)
    if reason is None:
        try:
            return command(settings)
        except _START_ERRORS as error:
            reason = " ".join(str(error).split()) or type(error).__name__
    _complain(f"the gateway could not start: {reason}")
    return COULD_NOT_START


def _complain(*lines: str) -> None:
    for line in lines:
        typer.echo(logs.redact(line), err=True)


def _warnings(settings: Settings) -> list[str]:
    return [*unknown_names(os.environ), *warnings(settings)]


def _serve(settings: Settings) -> int:
    """Serves until SIGTERM or SIGINT, then drains."""
    logs.configure(settings.log_format)
    worker = Worker.of(os.environ)
    if worker is None:
        for line in _warnings(settings):
            logger.warning(line)
        if settings.workers > 1:
            return supervise(settings)
    from gateway.server import run  # noqa: PLC0415 - the other commands need no server

    return run(settings, worker)


def _check(settings: Settings) -> int:
    """Shows the settings in force and what is insecure about them, and tries the store."""
    table = Table("setting", "value")
    for name, value in effective(settings):
        table.add_row(name, value)
    Console(markup=False).print(table)
    _complain(*(f"warning: {line}" for line in _warnings(settings)))
    fault = asyncio.run(_try_store(settings))
    if fault is not None:
        _complain(f"the store does not answer: {fault}")
        return FAILED
    typer.echo("the store can be read and written")
    return 0


async def _try_store(settings: Settings) -> str | None:
    from gateway.app import make_log  # noqa: PLC0415 - the other commands need no application

    log = make_log(settings)
    await log.open(lambda _entries: None)
    try:
        return await log.check()
    finally:
        await log.close()


app.command("serve")(_with_settings(_serve))
app.command("check")(_with_settings(_check))

app.add_typer(letters_command.app, name="dead-letters")


@app.command("version")
def _version() -> None:
    """Shows the version."""
    typer.echo(f"gateway {__version__} (Python {platform.python_version()})")


def main() -> None:
    app()
