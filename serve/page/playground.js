// @ts-check
/// <reference lib="dom" />
/** The playground: a prompt and its settings become a request, the answer appears token by token. */
import { ApiError, ask, complete, explain } from "./completion.js";
import { completionBody, curlCommand } from "./request.js";
import { createSettings } from "./settings.js";
import { createTip } from "./tip.js";
import { createTokens, isBytes } from "./tokens.js";

/**
 * @template {HTMLElement} T
 * @param {string} id
 * @param {new () => T} type
 */
function get(id, type) {
  const element = document.getElementById(id);
  if (!(element instanceof type)) throw new Error(`The page has no ${type.name} #${id}`);
  return element;
}

const form = get("form", HTMLFormElement);
const models = get("model", HTMLSelectElement);
const prompt = get("prompt", HTMLTextAreaElement);
const generate = get("generate", HTMLButtonElement);
const goOn = get("continue", HTMLButtonElement);
const stop = get("stop", HTMLButtonElement);
const copy = get("copy", HTMLButtonElement);
const key = get("key", HTMLInputElement);
const output = get("output", HTMLElement);
const speed = get("speed", HTMLElement);
const errorLine = get("error", HTMLElement);
const announcement = get("announcement", HTMLElement);

const settings = createSettings(form, key);
const tip = createTip(get("tip", HTMLElement), (label) => tip.shown && goOnFrom(tokens.indexOf(tip.shown), label));
const tokens = createTokens(get("tokens", HTMLElement), { onShow: tip.show, onLeave: tip.leave, onGoOn: goOnFrom });

/** @type {AbortController | undefined} */
let running;

/** @param {string} path of the API, wherever this page is mounted */
const api = (path) => new URL(`v1/${path}`, document.baseURI);

/** Generates from the prompt, or from the prompt and what has been generated. */
async function run({ onwards = false } = {}) {
  if (running || !form.reportValidity()) return;
  running = new AbortController();
  const { signal } = running;
  clearError();
  if (!onwards) tokens.clear();
  tokens.begin();
  refresh();
  const clock = createClock();
  let outcome = "stopped";
  try {
    const body = { ...completionBody(settings.read(), prompt.value + tokens.text), logprobs: 5 };
    for await (const delta of complete(api("completions"), body, key.value, signal)) {
      const atEnd = output.scrollTop + output.clientHeight >= output.scrollHeight - 4;
      tokens.append(delta);
      if (atEnd) output.scrollTop = output.scrollHeight;
      clock.count(delta.tokens.length);
      speed.textContent = clock.toString();
      copy.disabled = false;
      if (delta.finish) outcome = delta.finish === "length" ? "at the length asked for" : "at its end";
    }
  } catch (error) {
    if (!signal.aborted) outcome = fail(error);
  }
  running = undefined;
  refresh();
  speed.textContent = `${clock}${outcome === "" ? "" : ` · ${outcome}`}`;
  if (outcome !== "") announce(`${clock}, ${outcome}. ${tokens.text}`);
}

/**
 * Goes on from a token, or from another one in its place.
 *
 * @param {number} index
 * @param {string} [label]
 */
function goOnFrom(index, label) {
  if (running) return announce("Stop first, then go on from a token");
  if (index < 0 || (label !== undefined && isBytes(label))) return;
  tip.hide();
  tokens.cut(index, label);
  tokens.focus(tokens.length - 1);
  run({ onwards: true });
}

function refresh() {
  generate.disabled = running !== undefined || models.value === "";
  goOn.disabled = generate.disabled || tokens.text === "";
  stop.disabled = !running;
  copy.disabled = tokens.text === "";
  document.body.classList.toggle("running", running !== undefined);
}

/** Counts tokens from the moment it is made; says how fast they come. */
function createClock() {
  const begin = performance.now();
  let first = 0;
  let last = 0;
  let count = 0;
  return {
    /** @param {number} more */
    count(more) {
      last = performance.now();
      if (count === 0) first = last;
      count += more;
    },
    toString() {
      if (count === 0) return "0 tokens";
      const rate = count > 1 && last > first ? ` · ${(1000 * (count - 1) / (last - first)).toFixed(1)} tokens/s` : "";
      const wait = ` · first after ${((first - begin) / 1000).toFixed(2)} s`;
      return `${count} token${count === 1 ? "" : "s"}${rate}${wait}`;
    },
  };
}

/** Says what went wrong, where it can be mended. @param {unknown} error */
function fail(error) {
  errorLine.textContent = explain(error, key.value !== "");
  const asked = error instanceof ApiError && error.status === 401 ? key : undefined;
  const field = asked ?? form.elements.namedItem(error instanceof ApiError && error.param || "none");
  if (field instanceof HTMLElement) {
    field.closest("details")?.setAttribute("open", "");
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-errormessage", errorLine.id);
    field.focus();
  }
  return "";
}

function clearError() {
  errorLine.textContent = "";
  for (const field of document.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-errormessage");
  }
}

/** @param {string} text */
function announce(text) {
  announcement.textContent = text;
}

/** Lists the models; while the server can't say, asks again. */
async function listModels() {
  try {
    const { data } = await (await ask(api("models"), key.value)).json();
    const names = data.map((/** @type {{ id: string }} */ { id }) => id);
    models.replaceChildren(...names.map((/** @type {string} */ name) => new Option(name, name)));
    settings.chooseModel();
    clearError();
  } catch (error) {
    const later = error instanceof ApiError && (error.status === 0 || error.status === 503);
    if (later) setTimeout(listModels, 1000 * (error.retryAfter ?? 2));
    fail(error);
  }
  refresh();
}

/** @param {string} text @param {string} said */
async function copyText(text, said) {
  try {
    await navigator.clipboard.writeText(text);
    announce(said);
    return true;
  } catch { // no permission, or a page that came over plain HTTP
    const area = get("copying_text", HTMLTextAreaElement);
    area.value = text;
    get("copying", HTMLDialogElement).showModal();
    area.select();
    return false;
  }
}

/** @param {HTMLButtonElement} button @param {() => string} text */
function copies(button, text) {
  const label = button.textContent ?? "";
  button.addEventListener("click", async () => {
    if (!await copyText(text(), "Copied")) return;
    button.textContent = "Copied";
    setTimeout(() => button.textContent = label, 1500);
  });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
goOn.addEventListener("click", () => run({ onwards: true }));
stop.addEventListener("click", () => running?.abort());
key.addEventListener("change", () => models.value === "" && listModels());
copies(copy, () => prompt.value + tokens.text);
copies(get("curl", HTMLButtonElement), () => {
  const body = completionBody(settings.read(), prompt.value);
  return curlCommand(api("completions").href, body, key.value !== "");
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run({ onwards: event.shiftKey && tokens.text !== "" });
  } else if (event.key === "Escape") {
    tip.hide();
    running?.abort();
  }
});

refresh();
listModels();
