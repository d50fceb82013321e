// @ts-check
/// <reference lib="dom" />
/** The tooltip of a token: how probable it was and what else it could have been. It knows no server. */
import { isBytes } from "./tokens.js";

/** Milliseconds in which the pointer may cross from a token to its tooltip. */
const crossing = 150;

/** @param {number} logprob */
export function percent(logprob) {
  const value = 100 * Math.exp(logprob);
  if (value < 0.005) return "< 0.01 %";
  return `${value.toFixed(value < 10 ? 2 : 1)} %`;
}

/**
 * A token's text with its white space made visible.
 *
 * @param {string} label
 */
export function readable(label) {
  if (isBytes(label)) return label.slice("bytes:".length).replaceAll("\\x", " ").trim().toUpperCase();
  if (label === "") return "(nothing)";
  return label.replaceAll(" ", "·").replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(/[\p{Cc}\p{Cf}]/gu, "�");
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} name
 * @param {string} className
 * @param {string} [text]
 */
function make(name, className, text) {
  const element = document.createElement(name);
  element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

/**
 * @param {HTMLElement} tip
 * @param {(shown: import("./tokens.js").Shown, label: string) => void} onPick of an alternative, by pointer
 */
export function createTip(tip, onPick) {
  /** @type {import("./tokens.js").Shown | undefined} */
  let shown;
  /** @type {import("./tokens.js").Shown | undefined} */
  let resting;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;

  function hide() {
    shown?.element.removeAttribute("aria-describedby");
    shown?.element.classList.remove("shown");
    shown = undefined;
    tip.hidden = true;
  }

  /** @param {import("./tokens.js").Shown} next */
  function show(next) {
    clearTimeout(timer);
    if (next === shown) return;
    hide();
    shown = next;
    tip.replaceChildren(...rows(next.token));
    tip.hidden = false;
    place(tip, next.element);
    next.element.classList.add("shown");
    next.element.setAttribute("aria-describedby", tip.id);
  }

  /** @param {import("./tokens.js").Shown} [focused] is shown again, if there is one */
  function leave(focused) {
    resting = focused;
    clearTimeout(timer);
    timer = setTimeout(() => focused ? show(focused) : hide(), crossing);
  }

  tip.addEventListener("pointerenter", () => clearTimeout(timer));
  tip.addEventListener("pointerleave", () => leave(resting));
  tip.addEventListener("pointerdown", (event) => event.preventDefault()); // the focus stays
  tip.addEventListener("click", ({ target }) => {
    const row = target instanceof Element ? target.closest("[data-label]") : null;
    if (shown && row instanceof HTMLElement && row.dataset.label !== undefined) onPick(shown, row.dataset.label);
  });
  for (const event of ["scroll", "resize"]) addEventListener(event, () => shown && place(tip, shown.element), true);

  return {
    hide,
    show,
    leave,
  };
}

/** @param {import("./completion.js").Token} token */
function rows({ label, logprob, top }) {
  const heading = make("p", "visually-hidden");
  heading.textContent = `${readable(label)} ${percent(logprob)}. Instead:`;
  const list = top.map((one, i) => {
    const row = make("div", one.label === label ? "row taken" : "row");
    if (!isBytes(one.label)) row.dataset.label = one.label;
    row.append(make("kbd", "", String(i + 1)), word(one.label), bar(one.logprob), number(one.logprob));
    return row;
  });
  const others = 1 - top.reduce((sum, { logprob }) => sum + Math.exp(logprob), 0);
  if (top.length > 0 && others > 0.00005) {
    const row = make("div", "row others");
    const rest = Math.log(others);
    row.append(make("span", ""), make("span", "word", "all others"), bar(rest), number(rest));
    list.push(row);
  }
  return [heading, ...list];
}

/** @param {string} label */
const word = (label) => make("span", isBytes(label) ? "word bytes" : "word", readable(label));

/** @param {number} logprob */
const number = (logprob) => make("span", "number", percent(logprob));

/** @param {number} logprob */
function bar(logprob) {
  const track = make("span", "track");
  const fill = make("span", "fill");
  fill.style.width = `${Math.min(100, 100 * Math.exp(logprob)).toFixed(2)}%`;
  track.append(fill);
  return track;
}

/**
 * Puts the tooltip under a token, or above it where there is no room, within the column of the text.
 *
 * @param {HTMLElement} tip
 * @param {HTMLElement} element
 */
function place(tip, element) {
  const margin = 8;
  const { left, top, bottom } = element.getClientRects()[0] ?? element.getBoundingClientRect();
  const { width, height } = tip.getBoundingClientRect();
  const below = bottom + margin / 2;
  const above = top - margin / 2 - height;
  const y = below + height <= innerHeight - margin || above < margin ? below : above;
  const end = tip.parentElement?.getBoundingClientRect().right ?? innerWidth;
  tip.style.left = `${Math.max(margin, Math.min(left, end - width))}px`;
  tip.style.top = `${y}px`;
}
