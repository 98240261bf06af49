/**
 * The orders in columns by status. However many change, the document is touched once per
 * animation frame, and a column shows its newest orders only.
 */

import { describe, short } from "./orders.js";

const SHOWN = 50;
/** With more changes per second than this, motion would tell nothing and cost a lot. */
const ANIMATED_PER_SECOND = 15;
const FLIGHT = { duration: 420, easing: "cubic-bezier(0.2, 0.8, 0.2, 1)" };
const FLOW = ["created", "paid", "packed", "shipped", "delivered"];
const LAST = "cancelled";
/** Orders in a status beyond these many share a column, whatever their producers call it. */
const MAX_COLUMNS = 16;
const OTHER = "other";

const calm = matchMedia("(prefers-reduced-motion: reduce)");

/** The status that follows in an order's life, or null at its end and off the common path. */
export function nextStatus(status) {
  const place = FLOW.indexOf(status);
  return place < 0 ? null : (FLOW[place + 1] ?? null);
}

export function title(status) {
  return status.charAt(0).toUpperCase() + status.slice(1).replaceAll(/[_-]/g, " ");
}

export class Columns {
  #root;
  #flights;
  #orders = new Map();
  #columns = new Map();
  #dirty = new Set();
  #changed = new Set();
  #frame = null;
  #renderedAt = 0;
  #changesPerSecond = 0;

  /** `root` holds the columns, `flights` the cards on their way from one to another. */
  constructor(root, flights) {
    this.#root = root;
    this.#flights = flights;
    for (const status of FLOW) this.#column(status);
  }

  get size() {
    return this.#orders.size;
  }

  get(orderId) {
    return this.#orders.get(orderId);
  }

  /** Puts an order, `{id, status, time, data}`, on top of its column; `changed` makes the change visible as such. */
  put({ id, status, time, data }, { changed }) {
    const order = this.#orders.get(id) ?? newOrder(id);
    if (order.column) this.#take(order);
    Object.assign(order, { status, time, data, pending: false, stale: true });
    this.#orders.set(id, order);
    this.#column(status).push(order);
    this.#dirty.add(order.column);
    if (changed) this.#changed.add(order);
    this.#schedule();
  }

  /** Marks an order whose change is under way. */
  setPending(orderId, pending) {
    const order = this.#orders.get(orderId);
    if (!order) return;
    order.pending = pending;
    order.stale = true;
    this.#dirty.add(order.column);
    this.#schedule();
  }

  clear() {
    this.#orders.clear();
    this.#changed.clear();
    for (const column of this.#columns.values()) {
      column.clear();
      this.#dirty.add(column);
    }
    this.#schedule();
  }

  #take(order) {
    this.#dirty.add(order.column);
    order.column.remove(order);
  }

  #column(status) {
    const known = this.#columns.get(status);
    if (known) return known;
    if (this.#columns.size >= MAX_COLUMNS && status !== OTHER) return this.#column(OTHER);
    const column = new Column(status, `column-${this.#columns.size}`);
    this.#root.insertBefore(column.element, this.#columns.get(LAST)?.element ?? null);
    this.#columns.set(status, column);
    return column;
  }

  #schedule() {
    this.#frame ??= requestAnimationFrame((now) => {
      this.#frame = null;
      this.#render(now);
    });
  }

  #render(now) {
    const columns = [...this.#dirty];
    const changed = [...this.#changed];
    this.#dirty.clear();
    this.#changed.clear();
    const before = this.#isAnimated(changed.length, now) ? places(columns) : null;
    const focused = document.activeElement?.closest("[data-order-id]")?.dataset.orderId;
    for (const column of columns) column.render();
    this.#refocus(focused);
    if (!before) return;
    this.#animate(columns, before);
    for (const order of changed) order.card?.flash();
  }

  #isAnimated(changes, now) {
    const faded = this.#changesPerSecond * Math.exp((this.#renderedAt - now) / 1000);
    this.#changesPerSecond = faded + changes;
    this.#renderedAt = now;
    return changes > 0 && this.#changesPerSecond <= ANIMATED_PER_SECOND && !calm.matches;
  }

  /** A card that moves loses the focus on the way, and at the end of its path the button that had it. */
  #refocus(orderId) {
    const card = orderId && this.#orders.get(orderId)?.card;
    if (card && !card.element.contains(document.activeElement)) card.focus();
  }

  #animate(columns, before) {
    for (const order of before.keys()) order.card?.rest();
    for (const [order, to] of places(columns)) {
      const from = before.get(order);
      if (!within(to)) continue;
      if (!from) order.card.appear();
      else if (from.list === to.list) order.card.shift(from.box.top - to.box.top);
      else order.card.fly(from.box, to.box, this.#flights);
    }
  }
}

function newOrder(id) {
  return { id, firstSeen: performance.now(), column: null, card: null, newer: null, older: null };
}

/** Where the cards of these columns are in the document: order → {list, box}. */
function places(columns) {
  const found = new Map();
  for (const column of columns) {
    for (const order of column.newest()) {
      const element = order.card?.element;
      if (element?.isConnected) found.set(order, { list: element.parentElement, box: element.getBoundingClientRect() });
    }
  }
  return found;
}

/** Whether the box begins in the visible part of its list. */
function within({ box, list }) {
  const view = list.getBoundingClientRect();
  return box.top >= view.top && box.top < view.bottom;
}

/** A list of orders, newest first, linked so that a change costs the same however many there are. */
class Column {
  #first = null;
  #count = 0;
  #list;
  #counter;
  #rest;

  constructor(status, headingId) {
    const { element, part } = stamp("column-template");
    this.element = element;
    this.element.dataset.column = status;
    const heading = part("title");
    heading.textContent = title(status);
    heading.id = headingId;
    this.#list = part("list");
    this.#counter = part("count");
    this.#rest = part("rest");
    this.element.setAttribute("aria-labelledby", heading.id);
    this.#list.setAttribute("aria-labelledby", heading.id);
  }

  push(order) {
    order.column = this;
    order.newer = null;
    order.older = this.#first;
    if (this.#first) this.#first.newer = order;
    this.#first = order;
    this.#count += 1;
  }

  remove(order) {
    if (order.newer) order.newer.older = order.older;
    else this.#first = order.older;
    if (order.older) order.older.newer = order.newer;
    order.column = null;
    this.#count -= 1;
  }

  clear() {
    this.#first = null;
    this.#count = 0;
  }

  /** The orders that are shown. */
  newest() {
    const orders = [];
    for (let order = this.#first; order && orders.length < SHOWN; order = order.older) orders.push(order);
    return orders;
  }

  render() {
    const orders = this.newest();
    this.#discard(new Set(orders));
    let place = this.#list.firstElementChild;
    for (const order of orders) {
      order.card ??= new Card(order);
      order.card.update();
      if (order.card.element === place) place = place.nextElementSibling;
      else this.#list.insertBefore(order.card.element, place);
    }
    this.#counter.textContent = this.#count;
    this.#rest.hidden = this.#count <= SHOWN;
    this.#rest.textContent = `and ${this.#count - SHOWN} older`;
  }

  /** A card that is no longer among the newest here goes, unless its order has moved on and takes it along. */
  #discard(shown) {
    for (const element of [...this.#list.children]) {
      const { order } = Card.of(element);
      if (shown.has(order)) continue;
      element.remove();
      if (order.column === this) order.card = null;
    }
  }
}

class Card {
  static #cards = new WeakMap();
  #part;
  #animation = null;

  static of(element) {
    return Card.#cards.get(element);
  }

  constructor(order) {
    this.order = order;
    const { element, part } = stamp("card-template");
    this.element = element;
    this.#part = part;
    this.element.dataset.orderId = order.id;
    part("id").textContent = short(order.id);
    part("id").title = order.id;
    this.element.addEventListener("animationend", () => this.element.classList.remove("fresh"));
    Card.#cards.set(this.element, this);
  }

  update() {
    const { order } = this;
    if (!order.stale) return;
    order.stale = false;
    this.element.dataset.status = order.status;
    const { items, customer, total, clock } = describe(order);
    const texts = { items, customer, total, time: clock };
    for (const [name, text] of Object.entries(texts)) this.#part(name).textContent = text;
    this.#part("time").dateTime = order.time;
    this.#updateButton();
  }

  #updateButton() {
    const { order } = this;
    const next = nextStatus(order.status);
    const button = this.#part("advance");
    button.hidden = next === null;
    if (next === null) return;
    button.ariaDisabled = String(order.pending);
    this.#part("label").textContent = order.pending ? "Sent, on its way" : `Mark ${next}`;
    this.#part("which").textContent = ` (order ${short(order.id)})`;
  }

  focus() {
    const button = this.#part("advance");
    (button.hidden ? this.element : button).focus({ preventScroll: true });
  }

  /** Ends a motion under way, so that the next one starts where the eye has the card. */
  rest() {
    this.#animation?.cancel();
    this.#animation = null;
  }

  flash() {
    this.element.classList.add("fresh");
  }

  appear() {
    this.#play([{ opacity: 0, transform: "translateY(-8px)" }, { opacity: 1, transform: "none" }]);
  }

  shift(distance) {
    if (distance) this.#play([{ transform: `translateY(${distance}px)` }, { transform: "none" }]);
  }

  /** A column clips what leaves it, so a copy makes the way between two. */
  fly(from, to, flights) {
    const copy = this.element.cloneNode(true);
    delete copy.dataset.orderId;
    copy.classList.remove("fresh");
    Object.assign(copy.style, { left: `${to.left}px`, top: `${to.top}px`, width: `${to.width}px` });
    flights.append(copy);
    const start = `translate(${from.left - to.left}px, ${from.top - to.top}px)`;
    const flight = copy.animate([{ transform: start }, { transform: "none" }], FLIGHT);
    flight.onfinish = flight.oncancel = () => copy.remove();
    this.#play([{ opacity: 0 }, { opacity: 0 }]);
  }

  #play(frames) {
    this.#animation = this.element.animate(frames, FLIGHT);
  }
}

/** A copy of a template's element, and a function that finds its parts by `data-part`. */
function stamp(templateId) {
  const element = document.getElementById(templateId).content.firstElementChild.cloneNode(true);
  const parts = new Map();
  for (const each of element.querySelectorAll("[data-part]")) parts.set(each.dataset.part, each);
  return { element, part: (name) => parts.get(name) };
}
