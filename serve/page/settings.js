// @ts-check
/// <reference lib="dom" />
/** The controls of a form: read as settings, kept in this browser until the next visit. It knows no server. */
import { parseStops } from "./request.js";

const kept = "wgpt.playground";
const keptKey = "wgpt.key";

/** Storage may be forbidden; then nothing is kept. @template T @param {() => T} use */
function withStorage(use) {
  try {
    return use();
  } catch {
    return undefined;
  }
}

/**
 * Fills the form with what was kept and keeps what is changed; the key for the life of the tab only.
 *
 * @param {HTMLFormElement} form
 * @param {HTMLInputElement} key
 */
export function createSettings(form, key) {
  const details = /** @type {HTMLDetailsElement} */ (form.querySelector("details"));
  const tint = /** @type {HTMLInputElement} */ (document.getElementById("tint"));
  const wide = matchMedia("(min-width: 60rem)");
  /** @type {Record<string, string>} */
  let values = withStorage(() => JSON.parse(localStorage.getItem(kept) ?? "{}")) ?? {};

  const controls = () =>
    [...form.elements].filter((element) =>
      element instanceof HTMLInputElement || element instanceof HTMLTextAreaElement ||
      element instanceof HTMLSelectElement
    ).filter(({ name }) => name !== "");
  const showValues = () => {
    for (const value of form.querySelectorAll("[data-of]")) {
      value.textContent = Number(field(value.getAttribute("data-of") ?? "")).toFixed(2);
    }
  };
  /** @param {string} name */
  const field = (name) => String(new FormData(form).get(name) ?? "");
  const keep = () => {
    const { model } = values;
    values = { ...values, ...Object.fromEntries(controls().map(({ name }) => [name, field(name)])) };
    values.model ||= model; // none is to be had yet
    values.tint = String(tint.checked);
    withStorage(() => localStorage.setItem(kept, JSON.stringify(values)));
    showValues();
  };
  const showTint = () => document.body.classList.toggle("tinted", tint.checked);
  const unfold = () => details.open = wide.matches;

  for (const control of controls()) {
    const kept = values[control.name];
    if (kept === undefined) continue;
    if (control instanceof HTMLInputElement && control.type === "radio") control.checked = control.value === kept;
    else control.value = kept;
  }
  tint.checked = values.tint !== "false";
  key.value = withStorage(() => sessionStorage.getItem(keptKey)) ?? "";
  form.addEventListener("input", keep);
  tint.addEventListener("input", keep);
  tint.addEventListener("input", showTint);
  key.addEventListener("input", () => withStorage(() => sessionStorage.setItem(keptKey, key.value)));
  wide.addEventListener("change", unfold);
  unfold();
  showTint();
  showValues();

  return {
    /** Takes the model that was used last, if it is still there. */
    chooseModel() {
      const { model } = values;
      const select = /** @type {HTMLSelectElement} */ (form.elements.namedItem("model"));
      if ([...select.options].some(({ value }) => value === model)) select.value = model;
    },
    /** @returns {import("./request.js").Settings} */
    read() {
      const seed = field("seed");
      return {
        model: field("model"),
        temperature: Number(field("temperature")),
        topP: Number(field("top_p")),
        topK: Number(field("top_k")),
        minP: Number(field("min_p")),
        maxTokens: Number(field("max_tokens")),
        repetitionPenalty: Number(field("repetition_penalty")),
        seed: seed === "" ? undefined : Number(seed),
        stop: parseStops(field("stop")),
        chat: field("mode") === "chat",
        system: field("system"),
      };
    },
  };
}
