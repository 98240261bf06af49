"""The command `gateway dead-letters`: list, show, redrive and delete those of a running gateway, over HTTP."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, Final, NoReturn
from urllib.parse import quote

import typer

from gateway.logs import redact
from gateway.remote import Remote, RemoteError

FAILED: Final = 1
USAGE: Final = 2
_PATH: Final = "/dead-letters"
_REDRIVE_SECONDS: Final = 3600.0  # many letters are one call, which is silent until they are done

Url = Annotated[str, typer.Option(envvar="GATEWAY_URL", help="The gateway's root.")]
Token = Annotated[
    str | None, typer.Option(envvar="GATEWAY_TOKEN", help="An admin's token.", show_default=False)
]
Origin = Annotated[
    str | None, typer.Option(help="Only those of this origin, such as redis:orders.", show_default=False)
]
Id = Annotated[str, typer.Argument(metavar="ID", help="The letter's id.", show_default=False)]
_URL: Final = "http://127.0.0.1:8000"

app = typer.Typer(
    help="Dead letters of a running gateway.", no_args_is_help=True, pretty_exceptions_enable=False
)


@app.command("list")
def _list(url: Url = _URL, token: Token = None, origin: Origin = None) -> None:
    """One line for each: id, origin, time, tries and reason, with tabs between them."""
    for letter in _pages(Remote(url, token), origin):
        fields = (letter[name] for name in ("id", "origin", "time", "tries", "reason"))
        typer.echo("\t".join(redact(str(each)) for each in fields))


def _pages(remote: Remote, origin: str | None) -> Iterator[Any]:
    after: str | None = ""
    while after is not None:
        page = _call(remote, "GET", _PATH, origin=origin, after=after)
        yield from page["deadLetters"]
        after = page["next"]


@app.command("show")
def _show(id_: Id, url: Url = _URL, token: Token = None) -> None:
    """Shows one as JSON, with its payload."""
    letter = _call(Remote(url, token), "GET", _path_of(id_))
    typer.echo(json.dumps(letter, indent=2))  # ASCII: what came from outside shall not steer a terminal


@app.command("redrive")
def _redrive(
    id_: Annotated[
        str | None, typer.Argument(metavar="ID", help="The letter's id.", show_default=False)
    ] = None,
    url: Url = _URL,
    token: Token = None,
    origin: Origin = None,
    all_: Annotated[bool, typer.Option("--all", help="Every letter.")] = False,
) -> None:
    """Reads one again, or all of an origin, or all: those that are events now are published."""
    if [id_ is not None, origin is not None, all_].count(True) != 1:
        _fail("name one letter, or give one of --origin and --all", USAGE)
    remote = Remote(url, token)
    if id_ is not None:
        done = _call(remote, "POST", f"{_path_of(id_)}/redrive")
        typer.echo(f"{done['accepted']} accepted, {done['duplicates']} duplicates, cursor {done['cursor']}")
        return
    done = _call(remote, "POST", f"{_PATH}/redrive", origin=origin, seconds=_REDRIVE_SECONDS)
    typer.echo(f"{done['redriven']} redriven, {done['failed']} failed again")
    if done["failed"]:
        raise typer.Exit(FAILED)


@app.command("delete")
def _delete(id_: Id, url: Url = _URL, token: Token = None) -> None:
    """Deletes one."""
    _call(Remote(url, token), "DELETE", _path_of(id_))


def _path_of(id_: str) -> str:
    return f"{_PATH}/{quote(id_, safe='')}"


def _call(remote: Remote, method: str, path: str, **options: Any) -> Any:
    try:
        return remote.call(method, path, **options)
    except RemoteError as error:
        _fail(str(error), FAILED)


def _fail(line: str, code: int) -> NoReturn:
    typer.echo(redact(line), err=True)
    raise typer.Exit(code)
