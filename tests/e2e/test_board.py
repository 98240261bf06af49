"""The board in a real browser against a real gateway: what a user sees and does.

Needs `chromium` and `chromedriver` on the path.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from selenium.webdriver import Chrome, ChromeOptions, Keys
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.support.gateway import GatewayProcess
from tests.support.tokens import SECRET, bearer, make_token

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


class Orders:
    """The orders of a gateway, changed over its API as another application would."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.page = f"{gateway.url}/"
        self.http = httpx.Client(base_url=gateway.url, timeout=PATIENCE)

    def create(self, **order: Any) -> str:
        answer = self.http.post("orders", json={"items": [{"name": "Espresso cup"}], **order})
        order_id: str = answer.raise_for_status().json()["orderId"]
        return order_id

    def set_status(self, order_id: str, status: str) -> None:
        self.http.patch(f"orders/{order_id}/status", json={"status": status}).raise_for_status()

    def head(self) -> str:
        """The cursor of the newest event."""
        answer = self.http.get("events?wait=0", headers={"Accept": "application/json"})
        cursor: str = answer.raise_for_status().json()["cursor"]
        return cursor


@contextmanager
def orders_of(gateway: GatewayProcess) -> Iterator[Orders]:
    orders = Orders(gateway)
    with orders.http:
        yield orders


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orders]:
    with GatewayProcess(tmp_path_factory.mktemp("gateway")) as gateway, orders_of(gateway) as orders:
        yield orders


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
def board(fresh_board: Board, orders: Orders) -> Iterator[Board]:
    """The live board. Whatever a test does with it, the browser has nothing to complain of."""
    fresh_board.open(orders.page)
    fresh_board.until_state("live")
    yield fresh_board
    assert fresh_board.console() == []


@pytest.mark.parametrize("transport", ["websocket", "sse"])
def test_an_order_appears_and_moves_on(board: Board, orders: Orders, transport: str) -> None:
    """An order created elsewhere appears, and is in the column of each status that it gets."""
    board.choose(transport)
    board.until_state("live")
    order_id = orders.create()
    board.until_shows(order_id, "created")
    for status in ("paid", "packed", "shipped", "delivered"):
        orders.set_status(order_id, status)
        board.until_shows(order_id, status)
        assert not board.shows(order_id, "created")


def test_it_opens_with_the_orders_that_are_there(orders: Orders, fresh_board: Board) -> None:
    """A board that is opened later shows each order in its latest status."""
    order_id = orders.create()
    orders.set_status(order_id, "shipped")
    fresh_board.open(orders.page)
    fresh_board.until_shows(order_id, "shipped")
    assert fresh_board.console() == []


def test_without_orders_it_tells_how_to_create_one(tmp_path: Path, fresh_board: Board) -> None:
    """An empty board shows a command that creates the first order, and then the order instead."""
    with GatewayProcess(tmp_path) as gateway, orders_of(gateway) as orders:
        fresh_board.open(orders.page)
        fresh_board.until(lambda: fresh_board.by_id("empty").is_displayed())
        assert f"curl {orders.page}orders" in fresh_board.by_id("curl-create").text
        fresh_board.until_shows(orders.create(), "created")
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
    board: Board, orders: Orders, resumed_over: str
) -> None:
    """What happens in ten seconds without a connection has all arrived afterwards, over either transport."""
    order_id = orders.create()
    board.until_shows(order_id, "created")
    board.until(lambda: board.by_id("cut").get_attribute("aria-disabled") == "false")
    board.by_id("cut").click()
    board.until_state("stopped")
    board.choose(resumed_over)

    orders.set_status(order_id, "paid")
    orders.set_status(order_id, "packed")
    created_there = orders.create()
    board.by_id("new-order").click()
    board.until(lambda: "created" in board.by_id("announcer").text)
    assert board.state() == "stopped"
    assert board.shows(order_id, "created")

    board.until_state("live")
    board.until_shows(order_id, "packed")
    board.until_shows(created_there, "created")
    assert "4 events happened meanwhile, all 4 received, none missed." in board.by_id("report").text
    assert "no gap" in board.by_id("report").text


def test_both_transports_share_one_cursor(board: Board, orders: Orders) -> None:
    """A change of transport goes on where the other one was: no order is lost or told anew."""
    board.until_shows(orders.create(), "created")
    board.until(lambda: board.by_id("cursor").text == orders.head())
    before = board.order_ids()
    for transport in ("sse", "websocket"):
        board.choose(transport)
        board.until_state("live")
        assert board.by_id("cursor").text == orders.head()
        assert board.order_ids() == before
        board.until_shows(order_id := orders.create(), "created")
        before.add(order_id)
        board.until(lambda: board.by_id("cursor").text == orders.head())


def test_it_reconnects_to_a_restarted_gateway(tmp_path: Path, fresh_board: Board) -> None:
    """While the gateway is away the board says so and keeps trying; then it goes on by itself."""
    board = fresh_board
    with GatewayProcess(tmp_path) as gateway, orders_of(gateway) as orders:
        board.open(orders.page)
        board.until_shows(order_id := orders.create(), "created")
        gateway.kill9()
        board.until_state("waiting")
        board.by_id("new-order").click()
        board.until(lambda: "cannot be reached" in board.by_id("toasts").text)
        gateway.start()
        orders.set_status(order_id, "paid")
        board.until_state("live")
        board.until_shows(order_id, "paid")


def test_a_gateway_with_keys_is_shown_a_token(tmp_path: Path, fresh_board: Board) -> None:
    """The board asks for a token, says when it is refused, and with a good one works over both transports."""
    board = fresh_board
    token = make_token(publish=("order.*",), subscribe=({"prefix": {"type": "order."}},))
    with GatewayProcess(tmp_path, jwt_secret=SECRET) as gateway, orders_of(gateway) as orders:
        orders.http.headers.update(bearer(token))
        board.open(orders.page)
        board.until_state("unauthorized")
        board.by_id("token").send_keys("not.a.token", Keys.ENTER)
        board.until(lambda: board.by_id("token-error").text)
        board.by_id("token").send_keys(token, Keys.ENTER)
        board.until_shows(orders.create(), "created")
        board.choose("sse")
        board.until_state("live")
        board.until_shows(orders.create(), "created")
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


def test_a_narrow_screen_scrolls_the_columns_and_not_the_page(board: Board, orders: Orders) -> None:
    """At 360 pixels nothing is wider than the page; the columns scroll within it."""
    metrics = {"width": 360, "height": 780, "deviceScaleFactor": 1, "mobile": True}
    board.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        board.open(orders.page)
        board.until_shows(orders.create(customerId="c" * 200), "created")
        assert board.run("document.documentElement.scrollWidth") <= 360
        assert board.run("visualViewport.width") == 360
        assert board.run("columns.scrollWidth > columns.clientWidth")
    finally:
        board.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_column_shows_its_newest_orders_and_counts_the_rest(board: Board, orders: Orders) -> None:
    """Of sixty orders in a status of their own fifty are shown, newest first, and ten are counted."""
    events = [
        {"type": "order.updated", "subject": f"returned-{number}", "data": {"status": "returned"}}
        for number in range(60)
    ]
    orders.http.post("events", json=events).raise_for_status()
    board.until_shows("returned-59", "returned")
    board.until(lambda: len(board.cards("returned")) == 50)
    assert board.cards("returned")[0].get_attribute("data-order-id") == "returned-59"
    column = board.browser.find_element(By.CSS_SELECTOR, '[data-column="returned"]')
    assert "60" in column.text
    assert "and 10 older" in column.text


def test_an_orders_text_is_never_markup(board: Board, orders: Orders) -> None:
    """Markup in an order is shown as the text that it is."""
    markup = "<img src=x onerror=alert(1)>"
    order_id = orders.create(customerId=markup, items=[{"name": markup}])
    board.until_shows(order_id, "created")
    card = board.browser.find_element(By.CSS_SELECTOR, f'[data-order-id="{order_id}"]')
    assert card.text.count(markup) == 2


def test_a_moving_card_arrives(board: Board, orders: Orders) -> None:
    """With motion the card flies to its column, and nothing of the flight is left."""
    board.emulate()
    order_id = orders.create()
    board.until_shows(order_id, "created")
    orders.set_status(order_id, "paid")
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
