/**
 * The transports of the client, behind one interface. A transport is one connection: `open()` makes it,
 * `close()` ends it without a further word. It reports `open()`, `message(message)` with the messages of
 * the WebSocket protocol whatever its own framing, `interrupted()` where it reconnects by itself, and at
 * its end `closed({code, status, detail})`.
 */

/** The `id` of the one subscription that a connection has: errors with it are about the subscription. */
export const SUBSCRIBE_ID = "1";
const PING_AFTER_MS = 25_000;
const DEAD_AFTER_MS = PING_AFTER_MS + 10_000;

class WebSocketTransport {
  #gateway;
  #request;
  #report;
  #socket = null;
  #watch = null;
  #heardAt = 0;
  #pinged = false;

  constructor(gateway, request, report) {
    this.#gateway = gateway;
    this.#request = request;
    this.#report = report;
  }

  open() {
    const url = this.#gateway.url("ws");
    url.protocol = url.protocol.replace("http", "ws");
    const token = this.#gateway.token();
    try {
      this.#socket = new WebSocket(url, token ? ["gateway.v1", `bearer.${token}`] : ["gateway.v1"]);
    } catch {
      this.#report.closed({ status: 401, detail: "That is no token" });
      return;
    }
    this.#socket.onopen = () => this.#opened();
    this.#socket.onmessage = ({ data }) => this.#heard(data);
    this.#socket.onclose = ({ code, reason }) => this.#closed({ code, detail: reason });
  }

  close() {
    clearInterval(this.#watch);
    if (this.#socket === null) return;
    this.#socket.onopen = this.#socket.onmessage = this.#socket.onclose = null;
    this.#socket.close(1000);
  }

  #opened() {
    const { filter, since, cursor } = this.#request;
    this.#heardAt = performance.now();
    this.#watch = setInterval(() => this.#check(), 1000);
    this.#report.open();
    this.#send({ op: "subscribe", id: SUBSCRIBE_ID, ...(filter && { filter }), since: cursor ?? since });
  }

  #heard(data) {
    this.#heardAt = performance.now();
    this.#pinged = false;
    this.#report.message(JSON.parse(data));
  }

  /** A peer that vanished closes nothing: after a silence it is asked, and without an answer given up. */
  #check() {
    const silent = performance.now() - this.#heardAt;
    if (silent > DEAD_AFTER_MS) {
      this.close();
      this.#closed({ code: 1006 });
    } else if (silent > PING_AFTER_MS && !this.#pinged) {
      this.#pinged = true;
      this.#send({ op: "ping" });
    }
  }

  #closed(end) {
    clearInterval(this.#watch);
    this.#report.closed(end);
  }

  #send(message) {
    this.#socket.send(JSON.stringify(message));
  }
}

class EventSourceTransport {
  #gateway;
  #request;
  #report;
  #source = null;
  #gone = false;

  constructor(gateway, request, report) {
    this.#gateway = gateway;
    this.#request = request;
    this.#report = report;
  }

  async open() {
    const { filter, since, cursor } = this.#request;
    let path = `events?${queryOf({ filter, since, lastEventId: cursor })}`;
    try {
      if (this.#gateway.token()) path = await this.#admitted(path);
    } catch (error) {
      if (!this.#gone) this.#report.closed({ status: error.status, detail: error.message });
      return;
    }
    if (!this.#gone) this.#listen(path);
  }

  close() {
    this.#gone = true;
    this.#source?.close();
  }

  /** An EventSource sends no headers: a ticket, made for this very path and query, opens the stream instead. */
  async #admitted(path) {
    const { ticket } = await this.#gateway.request("POST", "tickets", { for: `/${path}` });
    return `${path}&${queryOf({ ticket })}`;
  }

  #listen(path) {
    const source = new EventSource(this.#gateway.url(path));
    source.onopen = () => this.#report.open();
    source.onmessage = ({ data, lastEventId }) =>
      this.#report.message({ op: "event", cursor: lastEventId, event: JSON.parse(data) });
    for (const op of ["live", "gap", "leave", "expiring"]) {
      source.addEventListener(op, ({ data, lastEventId }) =>
        this.#report.message({ cursor: lastEventId, ...JSON.parse(data), op }));
    }
    source.addEventListener("close", ({ data }) => this.#bidden(JSON.parse(data)));
    source.onerror = () => this.#broken();
    this.#source = source;
  }

  /** The browser reconnects by itself, as late as `retry:` bade it, unless that is pointless or needs a new ticket. */
  #bidden({ code, reason }) {
    const final = code >= 4000 && code < 4100;
    const renew = code >= 4200 && code < 4300;
    if (!final && !renew) return;
    this.close();
    this.#report.closed({ code, detail: reason });
  }

  #broken() {
    if (this.#source.readyState === EventSource.CLOSED) this.#report.closed({});
    else this.#report.interrupted();
  }
}

export const TRANSPORTS = { websocket: WebSocketTransport, sse: EventSourceTransport };

/** URL query parameters, those that are null left out; a filter goes as JSON. */
export function queryOf(parameters) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    if (value !== null && value !== undefined) query.set(name, typeof value === "object" ? JSON.stringify(value) : value);
  }
  return query.toString();
}
