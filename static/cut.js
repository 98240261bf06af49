/**
 * The ten seconds without a connection, and the account of them afterwards: from the moment the
 * subscription goes on at its cursor every event is counted until the gateway says `live`, which
 * means that the log holds no more; what it could not deliver it would have announced as a gap.
 */

import { short } from "./orders.js";
import { announce, byId, write } from "./ui.js";

const CUT_MS = 10_000;
const REASONS = {
  evicted: "the log no longer holds them",
  slow: "the log dropped them before this page had read them",
  epoch: "the gateway has another log now",
};

export class Cut {
  #subscription;
  #button;
  #phase = "none";
  #timer = null;
  #startedAt = 0;
  #from = null;
  #events = 0;
  #actions = 0;

  constructor(subscription, button) {
    this.#subscription = subscription;
    this.#button = button;
    button.addEventListener("click", () => this.#start());
  }

  /** Milliseconds until the connection is made again; 0 where it is not cut. */
  get left() {
    return this.#phase === "cut" ? Math.max(0, this.#startedAt + CUT_MS - performance.now()) : 0;
  }

  /** Whether what arrives now had happened during the cut. */
  get resuming() {
    return this.#phase === "resuming";
  }

  /** An event has arrived. */
  count() {
    if (this.resuming) this.#events += 1;
  }

  /** The gateway has accepted a change that the user made here. */
  acted() {
    if (this.#phase === "cut") this.#actions += 1;
  }

  /** The gateway says that `cursor` is the head of the log. */
  caughtUp(cursor) {
    if (!this.resuming) return;
    this.#phase = "none";
    const seconds = ((performance.now() - this.#startedAt) / 1000).toFixed(1);
    const own = this.#actions > 0 ? `You caused ${this.#actions}. ` : "";
    report("whole", `Back after ${seconds} s: ${this.#account()}`, `${own}Resumed at ${short(this.#from)}, live at ${short(cursor)}, no gap.`);
  }

  /** The gateway says that events are missing, in a cut or without one. */
  lost({ from, to, reason }) {
    this.abandon();
    const where = from && to ? `after ${short(from)} up to ${short(to)} ` : "";
    const why = REASONS[reason] ?? reason;
    report("gap", `Gap: events ${where}may be missing here, since ${why}.`, "The board loads the present state anew.");
  }

  /** The board begins anew: what arrives now tells nothing about a cut. */
  abandon() {
    this.#phase = "none";
  }

  /** To be called a few times per second. */
  refresh() {
    const seconds = Math.ceil(this.left / 1000);
    write("cut-text", this.#phase === "cut" ? `Cut, back in ${seconds} s` : "Cut the connection for 10 s");
    this.#button.ariaDisabled = String(!this.#ready);
  }

  get #ready() {
    return this.#phase === "none" && this.#subscription.state === "live";
  }

  #start() {
    if (!this.#ready) return;
    this.#phase = "cut";
    this.#startedAt = performance.now();
    this.#from = this.#subscription.cursor;
    this.#events = this.#actions = 0;
    this.#subscription.stop();
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#resume(), CUT_MS);
    byId("progress").animate([{ transform: "scaleX(0)" }, { transform: "scaleX(1)" }], CUT_MS);
    report("cut", "The connection is cut. Orders are still taken: place or advance some now, and see them arrive afterwards.");
    this.refresh();
  }

  #resume() {
    if (this.#phase !== "cut") return;
    this.#phase = "resuming";
    this.#subscription.start();
  }

  #account() {
    const count = this.#events;
    if (count === 0) return "nothing happened meanwhile, nothing missed.";
    if (count === 1) return "1 event happened meanwhile, received, none missed.";
    return `${count} events happened meanwhile, all ${count} received, none missed.`;
  }
}

function report(kind, text, detail = "") {
  const element = byId("report");
  element.dataset.kind = kind;
  element.textContent = text;
  if (detail) {
    const small = document.createElement("small");
    small.textContent = detail;
    element.append(" ", small);
  }
  announce(`${text} ${detail}`);
}
