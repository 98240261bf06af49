"""The board in a real browser against a real gateway: what a user sees and does.

Needs `chromium` and `chromedriver` on the path.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

PATIENCE = 20.0  # seconds until something that should happen has to have happened
CHROMIUM_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,900",
)
CALM = {"name": "prefers-reduced-motion", "value": "reduce"}


class Server:
    """A gateway on a port and a store of its own, which both outlive a restart."""

    def __init__(self, folder: Path, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}/"
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        self._environment = {
            **kept,
            "GATEWAY_STORE": f"sqlite:{folder / 'gateway.db'}",
            "GATEWAY_DRAIN_SECONDS": "0",
            **settings,
        }
        self._log = folder / "log"
        # Retries come with a growing pause: the first answer is there as soon as the gateway is.
        self.http = httpx.Client(
            base_url=self.url, transport=httpx.HTTPTransport(retries=8), timeout=PATIENCE
        )

    def start(self) -> None:
        command = [sys.executable, "-m", "gateway", "serve", "--port", str(self._port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, env=self._environment, stderr=log)
        assert self.http.get("readyz").status_code == 200, self._log.read_text()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)

    def create(self, **order: Any) -> str:
        answer = self.http.post("orders", json={"items": [{"name": "Espresso cup"}], **order})
        order_id: str = answer.raise_for_status().json()["orderId"]
        return order_id

    def set_status(self, order_id: str, status: str) -> None:
        self.http.patch(f"orders/{order_id}/status", json={"status": status}).raise_for_status()


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Server]:
    server = Server(folder, **settings)
    with server.http:
        try:
            server.start()
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("gateway")) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (*CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options, Service(shutil.which("chromedriver") or "chromedriver"))
    try:
        yield driver
    finally:
        driver.quit()


class Board:
    """The page as its user has it."""

    def __init__(self, browser: Chrome) -> None:
        self.browser = browser
        self._wait = WebDriverWait(browser, PATIENCE, poll_frequency=0.05)

    def open(self, url: str) -> None:
        self.browser.get(url)

    def until(self, condition: Callable[[], Any]) -> None:
        self._wait.until(lambda _: condition())

    def by_id(self, name: str) -> WebElement:
        return self.browser.find_element(By.ID, name)

    def state(self) -> str | None:
        return self.by_id("state").get_attribute("data-state")

    def until_state(self, name: str) -> None:
        self.until(lambda: self.state() == name)

    def shows(self, order_id: str, status: str) -> bool:
        card = f'[data-column="{status}"] [data-order-id="{order_id}"][data-status="{status}"]'
        return any(each.is_displayed() for each in self.browser.find_elements(By.CSS_SELECTOR, card))

    def until_shows(self, order_id: str, status: str) -> None:
        self.until(lambda: self.shows(order_id, status))

    def cards(self, column: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, f'[data-column="{column}"] [data-order-id]')

    def order_ids(self) -> set[str | None]:
        cards = self.browser.find_elements(By.CSS_SELECTOR, "[data-order-id]")
        return {each.get_attribute("data-order-id") for each in cards}

    def choose(self, transport: str) -> None:
        self.browser.find_element(By.CSS_SELECTOR, f'input[value="{transport}"]').click()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.browser.switch_to.active_element.send_keys(key)

    def run(self, script: str) -> Any:
        return self.browser.execute_script(f"return {script}")

    def emulate(self, *features: dict[str, str]) -> None:
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": list(features)})

    def console(self) -> list[str]:
        """What the browser has complained of since it was last asked: errors, CSP violations, failed requests."""
        return [entry["message"] for entry in self.browser.get_log("browser")]  # type: ignore[no-untyped-call]


@pytest.fixture
def fresh_board(browser: Chrome) -> Iterator[Board]:
    """A board that is not opened yet, without motion and with nothing remembered."""
    board = Board(browser)
    board.emulate(CALM)
    board.console()
    yield board
    board.run("(localStorage.clear(), sessionStorage.clear())")
    board.open("about:blank")


@pytest.fixture
def board(fresh_board: Board, server: Server) -> Iterator[Board]:
    """The live board. Whatever a test does with it, the browser has nothing to complain of."""
    fresh_board.open(server.url)
    fresh_board.until_state("live")
    yield fresh_board
    assert fresh_board.console() == []


@pytest.mark.parametrize("transport", ["websocket", "sse"])
def test_an_order_appears_and_moves_on(board: Board, server: Server, transport: str) -> None:
    """An order created elsewhere appears, and is in the column of each status that it gets."""
    board.choose(transport)
    board.until_state("live")
    order_id = server.create()
    board.until_shows(order_id, "created")
    for status in ("paid", "packed", "shipped", "delivered"):
        server.set_status(order_id, status)
        board.until_shows(order_id, status)
        assert not board.shows(order_id, "created")


def test_it_opens_with_the_orders_that_are_there(server: Server, fresh_board: Board) -> None:
    """A board that is opened later shows each order in its latest status."""
    order_id = server.create()
    server.set_status(order_id, "shipped")
    fresh_board.open(server.url)
    fresh_board.until_shows(order_id, "shipped")
    assert fresh_board.console() == []


def test_without_orders_it_tells_how_to_create_one(tmp_path: Path, fresh_board: Board) -> None:
    """An empty board shows a command that creates the first order, and then the order instead."""
    with serving(tmp_path) as server:
        fresh_board.open(server.url)
        fresh_board.until(lambda: fresh_board.by_id("empty").is_displayed())
        assert f"curl {server.url}orders" in fresh_board.by_id("curl-create").text
        fresh_board.until_shows(server.create(), "created")
        assert not fresh_board.by_id("empty").is_displayed()


def test_its_buttons_create_and_advance_an_order(board: Board) -> None:
    """The new order's card comes with a button that brings it to the next status."""
    before = board.order_ids()
    board.by_id("new-order").click()
    board.until(lambda: len(board.order_ids() - before) == 1)
    (order_id,) = board.order_ids() - before
    assert order_id is not None
    board.browser.find_element(By.CSS_SELECTOR, f'[data-order-id="{order_id}"] button').click()
    board.until_shows(order_id, "paid")
    board.until(lambda: board.by_id("click-last").text.endswith(" ms"))


@pytest.mark.parametrize("resumed_over", ["websocket", "sse"])
def test_nothing_is_missed_while_the_connection_is_cut(
    board: Board, server: Server, resumed_over: str
) -> None:
    """What happens in ten seconds without a connection has all arrived afterwards, over either transport."""
    order_id = server.create()
    board.until_shows(order_id, "created")
    board.until(lambda: board.by_id("cut").get_attribute("aria-disabled") == "false")
    board.by_id("cut").click()
    board.until_state("stopped")
    board.choose(resumed_over)

    server.set_status(order_id, "paid")
    server.set_status(order_id, "packed")
    created_there = server.create()
    board.by_id("new-order").click()
    board.until(lambda: "created" in board.by_id("announcer").text)
    assert board.state() == "stopped"
    assert board.shows(order_id, "created")

    board.until_state("live")
    board.until_shows(order_id, "packed")
    board.until_shows(created_there, "created")
    assert "4 events happened meanwhile, all 4 received, none missed." in board.by_id("report").text
    assert "no gap" in board.by_id("report").text


def test_both_transports_share_one_cursor(board: Board, server: Server) -> None:
    """A change of transport goes on where the other one was: no order is lost or told anew."""
    board.until_shows(server.create(), "created")
    board.until(lambda: board.by_id("cursor").text == _head(server))
    before = board.order_ids()
    for transport in ("sse", "websocket"):
        board.choose(transport)
        board.until_state("live")
        assert board.by_id("cursor").text == _head(server)
        assert board.order_ids() == before
        board.until_shows(order_id := server.create(), "created")
        before.add(order_id)
        board.until(lambda: board.by_id("cursor").text == _head(server))


def _head(server: Server) -> str:
    cursor: str = server.http.get("events?wait=0", headers={"Accept": "application/json"}).json()["cursor"]
    return cursor


def test_it_reconnects_to_a_restarted_gateway(tmp_path: Path, fresh_board: Board) -> None:
    """While the gateway is away the board says so and keeps trying; then it goes on by itself."""
    board = fresh_board
    with serving(tmp_path) as server:
        board.open(server.url)
        board.until_shows(order_id := server.create(), "created")
        server.stop()
        board.until_state("waiting")
        board.by_id("new-order").click()
        board.until(lambda: "cannot be reached" in board.by_id("toasts").text)
        server.start()
        server.set_status(order_id, "paid")
        board.until_state("live")
        board.until_shows(order_id, "paid")


def test_a_gateway_with_keys_is_shown_a_token(tmp_path: Path, fresh_board: Board) -> None:
    """The board asks for a token, says when it is refused, and with a good one works over both transports."""
    board, secret = fresh_board, "a secret of more than thirty-two bytes"
    rights = {"publish": ["order.*"], "subscribe": [{"prefix": {"type": "order."}}]}
    claims = {"sub": "user", "exp": int(time.time()) + 3600, "gateway": rights}
    token = jwt.encode(claims, secret, "HS256")
    with serving(tmp_path, GATEWAY_JWT_SECRET=secret) as server:
        server.http.headers["Authorization"] = f"Bearer {token}"
        board.open(server.url)
        board.until_state("unauthorized")
        board.by_id("token").send_keys("not.a.token", Keys.ENTER)
        board.until(lambda: board.by_id("token-error").text)
        board.by_id("token").send_keys(token, Keys.ENTER)
        board.until_shows(server.create(), "created")
        board.choose("sse")
        board.until_state("live")
        board.until_shows(server.create(), "created")
        assert board.run("localStorage.length") == 0
        assert board.console() == []


def test_it_works_by_keyboard_alone(board: Board) -> None:
    """Tab reaches the controls in the order they are read; Enter and the arrows use them; focus goes with a card."""
    before = board.order_ids()
    active = "document.activeElement"
    board.press(*[Keys.TAB] * _tabs_to(board, "new-order"))
    board.press(Keys.ENTER)
    board.until(lambda: len(board.order_ids() - before) == 1)
    (order_id,) = board.order_ids() - before
    assert order_id is not None

    board.press(Keys.TAB)
    assert board.run(f"{active}.value") == "websocket"
    board.press(Keys.ARROW_RIGHT)
    assert board.run("document.querySelector('[name=transport]:checked').value") == "sse"
    board.until_state("live")

    board.press(Keys.TAB)
    assert board.run(f"{active}.id") == "cut"
    board.press(Keys.TAB)
    assert board.run(f"{active}.closest('[data-order-id]').dataset.orderId") == order_id
    board.press(Keys.ENTER)
    board.until_shows(order_id, "paid")
    board.until(lambda: board.run(f"{active}.closest('[data-order-id]')?.dataset.orderId") == order_id)
    assert board.run(f"{active}.matches(':focus-visible')")


def _tabs_to(board: Board, name: str) -> int:
    """How many controls there are up to that one, in the order of the document."""
    focusable = "[...document.querySelectorAll('a, button, input')].filter((each) => each.checkVisibility())"
    ids: list[str] = board.run(f"{focusable}.map((each) => each.id)")
    return ids.index(name) + 1


def test_a_narrow_screen_scrolls_the_columns_and_not_the_page(board: Board, server: Server) -> None:
    """At 360 pixels nothing is wider than the page; the columns scroll within it."""
    metrics = {"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": True}
    board.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        board.open(server.url)
        board.until_shows(server.create(customerId="c" * 200), "created")
        assert board.run("document.documentElement.scrollWidth") <= 360
        assert board.run("visualViewport.width") == 360
        assert board.run("columns.scrollWidth > columns.clientWidth")
    finally:
        board.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_column_shows_its_newest_orders_and_counts_the_rest(board: Board, server: Server) -> None:
    """Of sixty orders in a status of their own fifty are shown, newest first, and ten are counted."""
    events = [
        {"type": "order.updated", "subject": f"returned-{number}", "data": {"status": "returned"}}
        for number in range(60)
    ]
    server.http.post("events", json=events).raise_for_status()
    board.until_shows("returned-59", "returned")
    board.until(lambda: len(board.cards("returned")) == 50)
    assert board.cards("returned")[0].get_attribute("data-order-id") == "returned-59"
    column = board.browser.find_element(By.CSS_SELECTOR, '[data-column="returned"]')
    assert "60" in column.text
    assert "and 10 older" in column.text


def test_an_orders_text_is_never_markup(board: Board, server: Server) -> None:
    """Markup in an order is shown as the text that it is."""
    markup = "<img src=x onerror=alert(1)>"
    order_id = server.create(customerId=markup, items=[{"name": markup}])
    board.until_shows(order_id, "created")
    card = board.browser.find_element(By.CSS_SELECTOR, f'[data-order-id="{order_id}"]')
    assert card.text.count(markup) == 2


def test_a_moving_card_arrives(board: Board, server: Server) -> None:
    """With motion the card flies to its column, and nothing of the flight is left."""
    board.emulate()
    order_id = server.create()
    board.until_shows(order_id, "created")
    server.set_status(order_id, "paid")
    board.until_shows(order_id, "paid")
    board.until(lambda: board.run("document.getElementById('flights').childElementCount") == 0)
    assert board.shows(order_id, "paid")


def test_the_theme_is_the_systems_until_it_is_chosen(board: Board) -> None:
    """The board follows the system; a choice wins over it and is remembered."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light = board.run(ground)
    board.emulate(CALM, {"name": "prefers-color-scheme", "value": "dark"})
    dark = board.run(ground)
    assert dark != light
    board.by_id("theme").click()
    assert board.run(ground) == light
    board.browser.refresh()
    board.until_state("live")
    assert board.run(ground) == light
    assert json.loads(board.by_id("theme").get_attribute("aria-pressed") or "null") is False
