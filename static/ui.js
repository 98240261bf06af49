/** The small things that every part of the page does to the document. */

const TOASTS = 3;

export function byId(id) {
  return document.getElementById(id);
}

/** Sets a text only where it differs, so that a refresh without news costs no layout. */
export function write(id, text) {
  const element = byId(id);
  if (element.textContent !== String(text)) element.textContent = text;
}

/** Tells a screen reader, when it has finished what it is saying. */
export function announce(text) {
  byId("announcer").textContent = text;
}

/** Shows a message until it is dismissed or newer ones push it out; the same one is not shown twice. */
export function toast(text) {
  const shown = [...byId("toasts").children];
  shown.find((each) => each.querySelector("p").textContent === text)?.remove();
  if (shown.length >= TOASTS) shown[0].remove();
  const element = byId("toast-template").content.firstElementChild.cloneNode(true);
  element.querySelector("p").textContent = text;
  element.querySelector("button").addEventListener("click", () => element.remove());
  byId("toasts").append(element);
}
