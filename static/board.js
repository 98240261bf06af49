/** The live board: wires the gateway's client, the columns, the controls and the measurements together. */

import { Columns, nextStatus, title } from "./columns.js";
import { Cut } from "./cut.js";
import { Gateway } from "./gateway.js";
import { orderOf, sampleOrder, short } from "./orders.js";
import { Durations, Rate, formatMilliseconds } from "./stats.js";
import { announce, byId, toast, write } from "./ui.js";

const TOKEN = "token";
const THEME = "theme";
const REFRESH_MS = 250;
const RELOAD_AT_MOST_EVERY_MS = 5000;

const STATES = {
  connecting: "Connecting",
  "catching-up": "Catching up",
  live: "Live",
  waiting: "Retrying",
  stopped: "Cut",
  unauthorized: "Token needed",
  failed: "Stopped",
};
const ICONS = { stopped: "cut", unauthorized: "key", failed: "stopped" };

const gateway = new Gateway({ base: document.baseURI, token: () => sessionStorage.getItem(TOKEN) });
const columns = new Columns(byId("columns"), byId("flights"));
const latency = new Durations();
const clicks = new Durations();
const rate = new Rate();
/** Own changes whose event is still to come: "ORDER STATUS" → when the click was. */
const awaited = new Map();

let connection = { name: "stopped", detail: "", retryAt: null };
let reload = null;
let reloadedAt = -Infinity;

const subscription = gateway.subscribe(
  { transport: "websocket", filter: { prefix: { type: "order." } }, since: "snapshot" },
  { event: onEvent, live: onLive, gap: onGap, state: onState, expiring: onExpiring },
);
const cut = new Cut(subscription, byId("cut"));

function onEvent(event) {
  rate.add();
  cut.count();
  const order = orderOf(event);
  if (!order) return;
  const live = subscription.state === "live";
  if (live) latency.add(Math.max(0, Date.now() - Date.parse(order.time)));
  columns.put(order, { changed: live || cut.resuming });
  if (columns.size === 1) showEmptiness();
  settle(order);
}

function onLive(cursor) {
  cut.caughtUp(cursor);
  showEmptiness();
}

/** Events are lost to this page: it says so, and starts again from what is true now. */
function onGap({ from, to, reason }) {
  cut.lost({ from, to, reason });
  clearTimeout(reload);
  reload = setTimeout(loadAnew, Math.max(0, reloadedAt + RELOAD_AT_MOST_EVERY_MS - performance.now()));
}

function loadAnew() {
  reloadedAt = performance.now();
  cut.abandon();
  columns.clear();
  subscription.restart();
}

function onState(state) {
  const changed = state.name !== connection.name;
  connection = state;
  if (state.name !== "live") awaited.clear();
  if (!changed) return;
  showState();
  announceState();
  showEmptiness();
  byId("token-form").hidden = true;
  if (state.name === "unauthorized") askForToken();
  if (state.name === "failed") toast(state.detail);
}

function onExpiring(seconds) {
  toast(`The token expires in ${seconds} s. Paste a new one then, and the board goes on where it was.`);
}

/* What the state of the connection looks like */

function showState() {
  const { name } = connection;
  byId("state").dataset.state = name;
  byId("state").querySelector("use").setAttribute("href", `#icon-${ICONS[name] ?? name}`);
  showStateText();
}

function showStateText() {
  const { name, retryAt } = connection;
  const left = name === "waiting" ? retryAt - performance.now() : cut.left;
  write("state-text", left > 0 ? `${STATES[name]}, ${Math.ceil(left / 1000)} s` : STATES[name]);
}

/** Told once it has lasted: passing through a state on the way to the next is no news. */
let announcement = null;
function announceState() {
  clearTimeout(announcement);
  const { name, detail } = connection;
  announcement = setTimeout(() => announce(`${STATES[name]}. ${detail}`), 600);
}

function showEmptiness() {
  byId("empty").hidden = connection.name !== "live" || columns.size > 0;
}

/* Own changes: each is measured from the click to the arrival of its event, unless the connection was cut between */

async function createOrder() {
  const clicked = clickedNow();
  const answer = await attempt(() => gateway.createOrder(sampleOrder()));
  if (!answer) return;
  cut.acted();
  announce(`Order ${short(answer.orderId)} created`);
  const arrived = columns.get(answer.orderId);
  if (arrived) measure(clicked, arrived.firstSeen);
  else awaited.set(`${answer.orderId} created`, clicked);
}

async function advance(orderId) {
  const order = columns.get(orderId);
  const status = order && nextStatus(order.status);
  if (!status || order.pending) return;
  columns.setPending(orderId, true);
  awaited.set(`${orderId} ${status}`, clickedNow());
  const answer = await attempt(() => gateway.setStatus(orderId, status));
  if (answer) {
    cut.acted();
    announce(`Order ${short(orderId)} is ${title(status).toLowerCase()}`);
  } else {
    awaited.delete(`${orderId} ${status}`);
    columns.setPending(orderId, false);
  }
}

/** The answer to a request, or null where it was refused, which the user is told. */
async function attempt(request) {
  try {
    return await request();
  } catch (error) {
    if (error.status === 401) askForToken(error.message);
    else toast(error.message);
    return null;
  }
}

/** Undefined where the event cannot arrive at once. */
function clickedNow() {
  return subscription.state === "live" ? performance.now() : undefined;
}

function settle({ id, status }) {
  const key = `${id} ${status}`;
  measure(awaited.get(key), performance.now());
  awaited.delete(key);
}

function measure(clicked, arrived) {
  if (clicked !== undefined) clicks.add(arrived - clicked);
}

/* The token stays in this tab */

function askForToken(problem = "") {
  const refused = gateway.token() !== null;
  byId("token-form").hidden = false;
  byId("token-error").textContent = refused ? problem || connection.detail || "That token was refused" : "";
  byId("token").focus();
}

function takeToken(event) {
  event.preventDefault();
  sessionStorage.setItem(TOKEN, byId("token").value.trim());
  byId("token").value = "";
  byId("token-form").hidden = true;
  showToken();
  subscription.start();
}

function forgetToken() {
  sessionStorage.removeItem(TOKEN);
  showToken();
  loadAnew();
}

function showToken() {
  byId("forget").hidden = gateway.token() === null;
  showCommands();
}

/* The theme, the system's unless chosen */

const dark = matchMedia("(prefers-color-scheme: dark)");

function isDark() {
  const { theme } = document.documentElement.dataset;
  return theme ? theme === "dark" : dark.matches;
}

function showTheme() {
  byId("theme").ariaPressed = String(isDark());
}

function toggleTheme() {
  const theme = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem(THEME, theme);
  } catch {
    // Where storage is forbidden the choice lasts as long as the page.
  }
  showTheme();
}

/* What is shown a few times per second, however fast events come */

function refresh() {
  showStateText();
  cut.refresh();
  write("cursor", subscription.cursor ?? "–");
  write("orders", columns.size.toLocaleString());
  write("rate", rate.perSecond(performance.now()).toFixed(1).replace(/\.0$/, ""));
  showDurations("latency", latency);
  showDurations("click", clicks);
}

function showDurations(name, durations) {
  write(`${name}-last`, formatMilliseconds(durations.last));
  write(`${name}-p50`, formatMilliseconds(durations.percentile(0.5)));
  write(`${name}-p95`, formatMilliseconds(durations.percentile(0.95)));
}

function showCommands() {
  const header = gateway.token() ? ' -H "Authorization: Bearer $TOKEN"' : "";
  const order = `{"customerId":"c-1042","items":[{"name":"Espresso cup","quantity":2,"price":9.5}],"total":19,"currency":"EUR"}`;
  byId("curl-create").textContent =
    `curl ${gateway.url("orders")}${header} \\\n  -H 'Content-Type: application/json' \\\n  -d '${order}'`;
  byId("curl-subscribe").textContent = `curl -N${header} '${gateway.url("events?type=order.*&since=snapshot")}'`;
}

byId("new-order").addEventListener("click", createOrder);
byId("columns").addEventListener("click", ({ target }) => {
  const button = target.closest("[data-action=advance]");
  if (button) advance(button.closest("[data-order-id]").dataset.orderId);
});
byId("transport").addEventListener("change", ({ target }) => subscription.use(target.value));
byId("token-form").addEventListener("submit", takeToken);
byId("forget").addEventListener("click", forgetToken);
byId("theme").addEventListener("click", toggleTheme);
dark.addEventListener("change", showTheme);

showTheme();
showToken();
setInterval(refresh, REFRESH_MS);
subscription.start();
