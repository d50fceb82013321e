// @ts-check
/// <reference lib="dom" />
/** A text made of tokens, each tinted by how surprising it was; pointer and arrow keys reach them. It knows no server. */

/**
 * @typedef {import("./completion.js").Token} Token
 * @typedef {import("./completion.js").Delta} Delta
 *
 * @typedef {object} Shown A token on the page.
 * @property {Token} token
 * @property {number} start in code points of the whole text
 * @property {HTMLElement} element
 */

/** A token this improbable (in bits) has the strongest tint: 1 in 1024. */
const mostBits = 10;

/** @param {string} label */
export const isBytes = (label) => label.startsWith("bytes:\\x");

/**
 * @param {HTMLElement} container
 * @param {object} hooks
 * @param {(shown: Shown) => void} hooks.onShow where pointer or focus comes to a token
 * @param {(focused?: Shown) => void} hooks.onLeave where pointer or focus leaves; a token may still have the focus
 * @param {(index: number, label: string | undefined) => void} hooks.onGoOn from a token, perhaps from another in its place
 */
export function createTokens(container, { onShow, onLeave, onGoOn }) {
  /** @type {Shown[]} */
  const all = [];
  /** @type {string[]} code points */
  let text = [];
  let start = 0; // of the answer that is being written, in `text`

  /** @param {Token} token */
  function add(token) {
    const element = document.createElement("span");
    element.className = "token";
    element.tabIndex = all.length === 0 ? 0 : -1;
    element.style.setProperty("--surprise", String(Math.min(1, -token.logprob / Math.LN2 / mostBits).toFixed(3)));
    container.append(element);
    all.push({ token, start: start + token.offset, element });
  }

  /** Writes the text of the tokens from one on: each has the characters that begin before the next one. */
  function write(from = 0) {
    for (let i = Math.max(0, from); i < all.length; i++) {
      const { element, start } = all[i];
      element.textContent = text.slice(start, all[i + 1]?.start).join("");
      element.classList.toggle("part", element.textContent === "");
      element.classList.toggle("break", /^\s*\n/.test(element.textContent));
    }
  }

  /** @param {EventTarget | null} target */
  const indexOf = (target) => all.findIndex(({ element }) => element === target);

  /** @param {number} index */
  function focus(index) {
    for (const { element } of all) if (element.tabIndex === 0) element.tabIndex = -1;
    all[index].element.tabIndex = 0;
    all[index].element.focus();
  }

  container.addEventListener("focusin", ({ target }) => {
    const index = indexOf(target);
    if (index < 0) return;
    for (const { element } of all) element.tabIndex = element === target ? 0 : -1;
    onShow(all[index]);
  });
  container.addEventListener("focusout", () => onLeave());
  container.addEventListener("pointerover", ({ target, pointerType }) => {
    if (pointerType !== "touch" && indexOf(target) >= 0) onShow(all[indexOf(target)]);
  });
  container.addEventListener("pointerleave", () => onLeave(all[indexOf(document.activeElement)]));
  container.addEventListener("keydown", (event) => {
    const at = indexOf(event.target);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = destination(all, at, event.key);
    const other = /^[1-9]$/.test(event.key) ? all[at].token.top[Number(event.key) - 1] : undefined;
    if (to !== undefined) focus(to);
    else if (event.key === "Enter") onGoOn(at, undefined);
    else if (other) onGoOn(at, other.label);
    else return;
    event.preventDefault();
  });

  return {
    get text() {
      return text.join("");
    },
    get length() {
      return all.length;
    },
    /** The next answer goes on where the text ends. */
    begin() {
      start = text.length;
    },
    /** @param {Delta} delta */
    append(delta) {
      const before = all.length;
      text.push(...delta.text);
      if (delta.tokens.length === 0 && before === 0) container.textContent = text.join(""); // no probabilities
      for (const token of delta.tokens) add(token);
      write(before - 1);
    },
    /**
     * Ends the text behind a token, or before it and with another one in its place.
     *
     * @param {number} index
     * @param {string} [label]
     */
    cut(index, label) {
      const { token, start: from } = all[index];
      const end = label === undefined ? all[index + 1]?.start ?? text.length : from;
      for (const { element } of all.splice(label === undefined ? index + 1 : index)) element.remove();
      text = text.slice(0, end);
      start = end;
      if (label === undefined) return write(index);
      const logprob = token.top.find((one) => one.label === label)?.logprob ?? token.logprob;
      this.append({ text: label, tokens: [{ label, logprob, offset: 0, top: token.top }], finish: null });
      start = text.length;
    },
    /** @param {Shown} shown */
    indexOf: (shown) => all.indexOf(shown),
    focus,
  };
}

/**
 * Where a key leads from a token: along the text, to the line above or below, to an end.
 *
 * @param {readonly Shown[]} all
 * @param {number} at
 * @param {string} key
 */
function destination(all, at, key) {
  if (key === "ArrowRight") return Math.min(at + 1, all.length - 1);
  if (key === "ArrowLeft") return Math.max(at - 1, 0);
  if (key === "Home") return 0;
  if (key === "End") return all.length - 1;
  if (key !== "ArrowUp" && key !== "ArrowDown") return undefined;
  const step = key === "ArrowDown" ? 1 : -1;
  const { left, top, height } = box(all[at]);
  let best = at;
  for (let i = at + step; i >= 0 && i < all.length; i += step) {
    const other = box(all[i]);
    const lines = Math.round((other.top - top) * step / height);
    if (lines > 1 && best !== at) break;
    if (lines < 1) continue;
    if (best === at || Math.abs(other.left - left) < Math.abs(box(all[best]).left - left)) best = i;
  }
  return best;
}

/** @param {Shown} shown */
const box = ({ element }) => element.getClientRects()[0] ?? element.getBoundingClientRect();
