"""The command `gateway dead-letters` against a gateway on a socket."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from tests.support.gateway import Running, make_settings, running_gateway
from tests.support.letters import BAD, give_reader, letter
from tests.support.tokens import SECRET, admin_token, make_token


@pytest.fixture
async def gateway() -> AsyncIterator[Running]:
    async with running_gateway(make_settings(jwt_secret=SECRET)) as running:
        give_reader(running.node)
        yield running


async def run(gateway: Running, *args: str, token: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command as an admin calls it, who has the URL and the token in the environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    given = {
        "GATEWAY_URL": gateway.url,
        "GATEWAY_TOKEN": token or admin_token(),
        "COLUMNS": "200",
        "NO_COLOR": "1",
    }
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "gateway", "dead-letters", *args],
        env={**clean, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def ids(gateway: Running) -> list[str]:
    return [each.id for each in await gateway.node.log.dead_letters(limit=1000)]


async def test_letters_are_lines(gateway: Running) -> None:
    """All pages of them, or those of an origin; what came from outside steers no terminal."""
    await gateway.node.log.bury([letter(f"{n:03}", origin=f"redis:{n % 2}") for n in range(230)])
    await gateway.node.log.bury([letter("x", reason="\x1b[2J\tand\nmore", tries=2)])
    done = await run(gateway, "list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == [*(f"{n:03}" for n in range(230)), "x"]
    assert lines[0] == ["000", "redis:0", "2023-11-14T22:13:20.500Z", "1", "it was no event"]
    assert lines[-1][3:] == ["2", "\\u001b[2J\\u0009and\\u000amore"]
    one = await run(gateway, "list", "--origin", "redis:1")
    assert [line.split("\t")[0] for line in one.stdout.splitlines()] == [f"{n:03}" for n in range(1, 230, 2)]


async def test_a_letter_is_shown_and_deleted_by_its_id(gateway: Running) -> None:
    """Whatever the id; one that is not there is exit 1 and one line."""
    await gateway.node.log.bury([letter("redis:a/b c?", b'{"\x9b')])
    shown = await run(gateway, "show", "redis:a/b c?")
    assert json.loads(shown.stdout)["payload_base64"] == "eyKb"
    deleted = await run(gateway, "delete", "redis:a/b c?")
    assert (deleted.returncode, deleted.stdout, deleted.stderr) == (0, "", "")
    assert await ids(gateway) == []
    for command in ("show", "delete", "redrive"):
        done = await run(gateway, command, "x")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"{gateway.url} answers 404: there is no dead letter x\n"


async def test_letters_are_redriven(gateway: Running) -> None:
    """One, those of an origin, or all; where one failed again the exit code is 1."""
    log = gateway.node.log
    await log.bury([letter("a"), letter("b", BAD), letter("c", origin="redis:c"), letter("d"), letter("e")])
    done = await run(gateway, "redrive", "a")
    assert (done.returncode, done.stdout) == (0, f"1 accepted, 0 duplicates, cursor {log.epoch}.1\n")
    done = await run(gateway, "redrive", "b")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{gateway.url} answers 422: type: is required\n"
    done = await run(gateway, "redrive", "--origin", "redis:c")
    assert (done.returncode, done.stdout) == (0, "1 redriven, 0 failed again\n")
    done = await run(gateway, "redrive", "--all")
    assert (done.returncode, done.stdout) == (1, "2 redriven, 1 failed again\n")
    assert (await ids(gateway), log.head) == (["b"], 4)


@pytest.mark.parametrize(
    "args", [(), ("a", "--all"), ("a", "--origin", "redis:a"), ("--all", "--origin", "redis:a")]
)
async def test_what_to_redrive_is_said_in_one_way(gateway: Running, args: tuple[str, ...]) -> None:
    """Nothing is done where it is not: exit 2 and one line."""
    await gateway.node.log.bury([letter("a")])
    done = await run(gateway, "redrive", *args)
    assert (done.returncode, done.stderr) == (2, "name one letter, or give one of --origin and --all\n")
    assert await ids(gateway) == ["a"]


async def test_who_is_no_admin_is_told(gateway: Running) -> None:
    """Exit 1 and one line, without the token."""
    token = make_token()
    done = await run(gateway, "list", token=token)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "answers 403: " in done.stderr
    assert token not in done.stderr
