"""The README tells the truth: its tables, commands and examples are those of the code."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.errors import KINDS
from gateway.metrics import Metrics
from gateway.settings import settings_table
from tests.support.gateway import GatewayProcess

README = (Path(__file__).parent.parent / "README.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_settings_table() -> None:
    """The table has every setting with its default and help, and no other."""
    section = README.partition("<!-- settings -->")[2].partition("<!-- /settings -->")[0]
    rows = [line.strip("| ").split(" | ") for line in section.strip().splitlines()[2:]]
    assert [(name.strip("`"), default, text) for name, default, text in rows] == settings_table()


def test_metrics_table() -> None:
    """The metrics named are those that a node has, with their labels."""
    named = set(re.findall(r"`(gateway_[a-z_]+)(?:\{[a-z,]+\})?`", README))
    exposed = set(
        re.findall(r"^# TYPE (\S+) (?:counter|gauge|histogram)$", Metrics().render().decode(), re.MULTILINE)
    )
    assert named - {"gateway_token"} == exposed


def test_close_codes() -> None:
    """The close codes of the table are those that errors close with."""
    section = README.partition("| code | meaning | then |")[2].partition("\n\n")[0]
    named = {int(code) for code in re.findall(r"\b\d{4}\b", section)}
    ours = {kind.close for kind in KINDS.values() if kind.close >= 4000} | {1012}
    assert named == ours


def test_commands_come_early() -> None:
    """Both commands stand within the first 20 lines."""
    first = README.splitlines()[:20]
    assert any(line.startswith("make run") for line in first)
    assert any(line.startswith("make test") for line in first)


@pytest.mark.parametrize("example", _blocks("json"), ids=range(len(_blocks("json"))))
def test_json_is_json(example: str) -> None:
    """Every JSON example parses."""
    json.loads(example)


async def test_curl_and_python_examples(tmp_path: Path) -> None:
    """What the curl command publishes, the Python lines print."""
    publish = next(block for block in _blocks("sh") if "POST" not in block and "-d '" in block)
    with GatewayProcess(tmp_path) as gateway:
        answer = await asyncio.to_thread(
            subprocess.run,
            publish.replace("http://127.0.0.1:8000", gateway.url).replace("curl ", "curl -s ", 1),
            shell=True,
            capture_output=True,
            check=True,
        )
        assert json.loads(answer.stdout)["accepted"] == 1
        code = _blocks("python")[0].replace("http://127.0.0.1:8000", gateway.url)
        reader = await asyncio.create_subprocess_exec(
            sys.executable,
            "-u",
            "-c",
            code,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert reader.stdout is not None
        try:
            printed = await asyncio.wait_for(reader.stdout.readline(), 20)
        finally:
            reader.kill()
            await reader.wait()
    assert b"'status': 'paid'" in printed
