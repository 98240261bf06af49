/** Orders as the board tells them, whatever shape their producer gave them, and sample orders. */

const CATALOGUE = [
  ["CUP-04", "Espresso cup", 9.5],
  ["BEAN-1K", "House blend 1 kg", 24],
  ["GRIND-2", "Hand grinder", 79],
  ["FILT-100", "Paper filters", 6.8],
  ["KETTLE", "Gooseneck kettle", 64],
  ["SCALE", "Brew scale", 39.9],
  ["TAMP-58", "Tamper 58 mm", 32],
  ["JUG-06", "Milk jug 0.6 l", 21.5],
];
const CURRENCY = "EUR";

const money = new Intl.NumberFormat(undefined, { minimumFractionDigits: 2, maximumFractionDigits: 2 });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

/** A made-up order, as a customer might place it. */
export function sampleOrder() {
  const items = Array.from({ length: 1 + random(3) }, () => random(CATALOGUE.length))
    .filter((place, index, all) => all.indexOf(place) === index)
    .map((place) => {
      const [sku, name, price] = CATALOGUE[place];
      return { sku, name, quantity: 1 + random(3), price };
    });
  const total = items.reduce((sum, { quantity, price }) => sum + quantity * price, 0);
  return { customerId: `c-${1000 + random(40)}`, items, total: Math.round(total * 100) / 100, currency: CURRENCY };
}

/** The order that an event tells, or null where it tells of none. */
export function orderOf(event) {
  const data = event.data !== null && typeof event.data === "object" ? event.data : {};
  const id = event.subject ?? data.orderId ?? data.id;
  if (id === undefined || id === null) return null;
  const status = typeof data.status === "string" && data.status ? data.status : event.type.split(".").at(-1) || "unknown";
  return { id: String(id), status, time: event.time, data };
}

/** What a card shows: `{items, customer, total, clock}`, all text, empty where the order does not say. */
export function describe({ data, time }) {
  return {
    items: Array.isArray(data.items) ? data.items.map(describeItem).filter(Boolean).join(", ") : "",
    customer: typeof data.customerId === "string" ? data.customerId : "",
    total: formatTotal(data),
    clock: formatClock(time),
  };
}

/** The end of a long id or cursor, where those that begin alike differ. */
export function short(id) {
  return id.length > 20 ? `…${id.slice(-8)}` : id;
}

function describeItem(item) {
  if (item === null || typeof item !== "object") return String(item ?? "");
  const name = item.name ?? item.sku ?? item.productId ?? item.id ?? "item";
  const quantity = item.quantity ?? item.qty ?? 1;
  return quantity === 1 ? String(name) : `${quantity}\u00a0×\u00a0${name}`;
}

function formatTotal({ total, currency }) {
  if (typeof total !== "number") return "";
  return `${money.format(total)} ${typeof currency === "string" ? currency : ""}`.trim();
}

function formatClock(time) {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? "" : clock.format(date);
}

function random(below) {
  return Math.floor(Math.random() * below);
}
