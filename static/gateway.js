/**
 * The gateway's client: a subscription that outlives its connections, over WebSocket or
 * Server-Sent Events, and the calls of the orders API. It needs no DOM.
 */

import { SUBSCRIBE_ID, TRANSPORTS, queryOf } from "./transports.js";

const BACKOFF_FIRST_MS = 500;
const BACKOFF_MAX_MS = 15_000;
/** A connection that lasted this long was a good one: the back-off starts anew after it. */
const STABLE_MS = 10_000;
const REQUEST_TIMEOUT_MS = 15_000;

/** With these a subscription needs another token, or is refused for good; with every other one it is tried again. */
const TOKEN_CODES = new Set(["unauthorized", "token_expired"]);
const FINAL_CODES = new Set(["bad_filter", "bad_message", "bad_since", "forbidden"]);
const FINAL_STATUS = new Set([400, 403, 404, 405, 406, 421, 422]);

/** A refused request: the members of its problem details (RFC 9457), or status 0 where no answer came. */
export class GatewayError extends Error {
  constructor({ status = 0, code = "unreachable", title = "The gateway cannot be reached", detail = "" }) {
    super(detail || title);
    this.name = "GatewayError";
    this.status = status;
    this.code = code;
  }
}

/** One gateway: where it is and, if it wants one, the token to show it. */
export class Gateway {
  /** `base` is the URL of the gateway's root, with the prefix of a proxy; `token()` answers a bearer token or null. */
  constructor({ base, token = () => null }) {
    this.base = base;
    this.token = token;
  }

  url(path) {
    return new URL(path, this.base);
  }

  /** A subscription, not yet started; see `Subscription` for both arguments. */
  subscribe(options, handlers) {
    return new Subscription(this, options, handlers);
  }

  createOrder(order) {
    return this.request("POST", "orders", order);
  }

  setStatus(orderId, status) {
    return this.request("PATCH", `orders/${encodeURIComponent(orderId)}/status`, { status });
  }

  /** The JSON answer to a JSON request. Throws GatewayError. */
  async request(method, path, body) {
    const headers = { Accept: "application/json" };
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (this.token()) headers.Authorization = `Bearer ${this.token()}`;
    const signal = AbortSignal.timeout(REQUEST_TIMEOUT_MS);
    let response;
    try {
      response = await fetch(this.url(path), { method, headers, signal, body: JSON.stringify(body) });
    } catch {
      throw new GatewayError({});
    }
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) throw new GatewayError({ title: response.statusText, ...answer, status: response.status });
    return answer;
  }
}

/**
 * A stream of events that reconnects by itself and goes on at its cursor, whatever the transport.
 *
 * Options: `transport` ("websocket" or "sse"), `filter` (JSON or null), `since` (where the first
 * connection starts).
 * Handlers: `event(event, cursor)`, `live(cursor)`, `gap({from, to, reason})`, `expiring(seconds)` and
 * `state({name, detail, retryAt})`, where `name` is one of
 *
 *     stopped → connecting → catching-up → live
 *                  ↑  ↓
 *                 waiting (until `retryAt`, in milliseconds of performance.now())
 *
 * or, where another try is pointless, `unauthorized` and `failed`, both left by `start()`.
 */
export class Subscription {
  #gateway;
  #options;
  #handlers;
  #connection = null;
  #retry = null;
  #failures = 0;
  #openedAt = null;
  #reconnectAfterMs = null;
  cursor = null;
  state = "stopped";

  constructor(gateway, options, handlers) {
    this.#gateway = gateway;
    this.#options = { ...options };
    this.#handlers = handlers;
  }

  get transport() {
    return this.#options.transport;
  }

  /** Connects now, at the last cursor. */
  start() {
    this.#drop();
    this.#openedAt = null;
    this.#reconnectAfterMs = null;
    this.#enter("connecting");
    const Transport = TRANSPORTS[this.#options.transport];
    const { filter, since } = this.#options;
    const connection = new Transport(this.#gateway, { filter, since, cursor: this.cursor }, {
      open: () => this.#opened(),
      message: (message) => this.#receive(message),
      interrupted: () => this.#enter("connecting"),
      closed: (end) => this.#closed(end),
    });
    this.#connection = connection;
    connection.open();
  }

  /** Closes the connection and keeps the cursor. */
  stop() {
    this.#drop();
    this.#enter("stopped");
  }

  /** Forgets the cursor and begins again where `since` says. */
  restart() {
    this.cursor = null;
    this.start();
  }

  /** Changes the transport; a running subscription goes on at its cursor over the new one. */
  use(transport) {
    this.#options.transport = transport;
    if (this.state !== "stopped") this.start();
  }

  #drop() {
    clearTimeout(this.#retry);
    this.#connection?.close();
    this.#connection = null;
  }

  #enter(name, { detail = "", retryAt = null } = {}) {
    this.state = name;
    this.#handlers.state({ name, detail, retryAt });
  }

  #opened() {
    this.#openedAt = performance.now();
    this.#enter("catching-up");
  }

  #receive(message) {
    switch (message.op) {
      case "event":
        this.cursor = message.cursor;
        this.#handlers.event(message.event, message.cursor);
        break;
      case "live":
        this.cursor = message.cursor;
        this.#enter("live");
        this.#handlers.live(message.cursor);
        break;
      case "gap":
        this.cursor = message.to;
        this.#handlers.gap(message);
        break;
      case "subscribed":
      case "leave":
      case "at":
        this.cursor = message.cursor;
        break;
      case "expiring":
        this.#handlers.expiring(message.in);
        break;
      case "reconnect":
        this.#reconnectAfterMs = message.after_ms;
        break;
      case "error":
        this.#refused(message);
        break;
      default: // a newer gateway may say more
    }
  }

  #refused({ id, code, message }) {
    if (id !== SUBSCRIBE_ID) return; // of the connection: its close follows and says what to do
    if (TOKEN_CODES.has(code)) this.#end("unauthorized", message);
    else if (code === "bad_since" && this.cursor !== null) this.#loseThePlace();
    else if (FINAL_CODES.has(code)) this.#end("failed", message);
    else this.#wait(this.#delay(0));
  }

  /** The gateway cannot read our cursor any more, say because its key is another one. */
  #loseThePlace() {
    const from = this.cursor;
    this.cursor = null;
    this.start();
    this.#handlers.gap({ from, to: null, reason: "epoch" });
  }

  #end(name, detail) {
    this.#drop();
    this.#enter(name, { detail });
  }

  /** `code` is a WebSocket close code; `status` is that of a refused request, 0 where none came. */
  async #closed({ code = 0, status = 0, detail = "" }) {
    const connection = this.#connection;
    if (this.#openedAt === null && code < 4000 && status === 0) ({ status, detail } = await this.#diagnose());
    if (this.#connection !== connection) return;
    if (code === 4001 || status === 401) this.#end("unauthorized", detail);
    else if ((code >= 4000 && code < 4100) || FINAL_STATUS.has(status)) this.#end("failed", detail || closedBy(code));
    else this.#wait(this.#delay(code));
  }

  /** A browser does not tell why a connection was refused; the same request as a long poll does. */
  async #diagnose() {
    const { filter } = this.#options;
    try {
      await this.#gateway.request("GET", `events?${queryOf({ filter, limit: 1, wait: 0 })}`);
      return { status: 0 };
    } catch (error) {
      return { status: error.status, detail: error.message };
    }
  }

  #delay(code) {
    const opened = this.#openedAt;
    if (opened !== null && performance.now() - opened >= STABLE_MS) this.#failures = 0;
    this.#failures += 1;
    if (this.#reconnectAfterMs !== null) return this.#reconnectAfterMs;
    if (code >= 4200 && code < 4300 && this.#failures === 1) return 0;
    const ceiling = Math.min(BACKOFF_FIRST_MS * 2 ** (this.#failures - 1), BACKOFF_MAX_MS);
    return ceiling / 2 + (Math.random() * ceiling) / 2;
  }

  #wait(delay) {
    this.#drop();
    this.#retry = setTimeout(() => this.start(), delay);
    this.#enter("waiting", { retryAt: performance.now() + delay });
  }
}

function closedBy(code) {
  return `The gateway closed the connection (${code})`;
}
