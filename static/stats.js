/** What the board measures: the last durations, with percentiles, and a rate. */

const KEPT = 100;
const RATE_WINDOW_MS = 2000;

/** The last hundred durations in milliseconds. */
export class Durations {
  #kept = [];
  #next = 0;

  add(milliseconds) {
    if (!Number.isFinite(milliseconds)) return;
    this.last = milliseconds;
    this.#kept[this.#next] = milliseconds;
    this.#next = (this.#next + 1) % KEPT;
  }

  /** Of the kept durations, the one that `share` (0 to 1) of them do not exceed; undefined where none is kept. */
  percentile(share) {
    const sorted = this.#kept.toSorted((a, b) => a - b);
    return sorted[Math.max(0, Math.ceil(sorted.length * share) - 1)];
  }
}

/** Events per second over the last two seconds, in memory that does not grow with the rate. */
export class Rate {
  #count = 0;
  #marks = [];

  add() {
    this.#count += 1;
  }

  /** To be asked a few times per second: each question marks a point in time. */
  perSecond(now) {
    this.#marks.push({ now, count: this.#count });
    while (this.#marks.length > 1 && this.#marks[0].now < now - RATE_WINDOW_MS) this.#marks.shift();
    const first = this.#marks[0];
    return now > first.now ? ((this.#count - first.count) * 1000) / (now - first.now) : 0;
  }
}

export function formatMilliseconds(value) {
  if (value === undefined) return "–";
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}
