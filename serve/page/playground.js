// @ts-check
/// <reference lib="dom" />
/** The playground: a prompt or a message becomes a request, the answer appears token by token. */
import { createClock } from "./clock.js";
import { ApiError, ask, completeWithin, explain } from "./completion.js";
import { createConversation } from "./conversation.js";
import { createFollower } from "./follow.js";
import { chatBody, completionBody, curlCommand } from "./request.js";
import { createSettings } from "./settings.js";
import { createTip } from "./tip.js";
import { isBytes } from "./tokens.js";

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
const clear = get("clear", HTMLButtonElement);
const key = get("key", HTMLInputElement);
const section = get("answer", HTMLElement);
const heading = get("answer_heading", HTMLElement);
const promptLabel = get("prompt_label", HTMLElement);
const output = get("output", HTMLElement);
const speed = get("speed", HTMLElement);
const errorLine = get("error", HTMLElement);
const announcement = get("announcement", HTMLElement);

const settings = createSettings(form, key);
const tip = createTip(get("tip", HTMLElement), (shown, label) => {
  const answer = conversation.answerOf(shown);
  if (answer) goOnFrom(answer, answer.indexOf(shown), label);
});
const conversation = createConversation(get("turns", HTMLElement), { onShow: tip.show, onLeave: tip.leave }, goOnFrom);

/** @type {AbortController | undefined} */
let running;

/** What to ask, where, with what has been said so far and what is written. @param {{ onwards: boolean }} options */
function compose({ onwards }) {
  const values = settings.read();
  const so = onwards ? conversation.answer?.text ?? "" : "";
  if (!values.chat) return { url: api("completions"), body: completionBody(values, prompt.value + so), logprobs: 5 };
  const messages = conversation.messages();
  if (!onwards) messages.push({ role: "user", content: prompt.value });
  return { url: api("chat/completions"), body: chatBody(values, messages), logprobs: true, top_logprobs: 5 };
}

/** @param {string} path of the API, wherever this page is mounted */
const api = (path) => new URL(`v1/${path}`, document.baseURI);

/** Makes room for an answer to what is written. */
function beginAnswer() {
  if (settings.read().chat) {
    conversation.say(prompt.value);
    prompt.value = "";
  } else {
    conversation.clear();
  }
  return conversation.listen();
}

/** Generates from what is written, or goes on from what has been generated. */
async function run({ onwards = false } = {}) {
  if (running || generate.disabled || !form.reportValidity()) return;
  if (!onwards && settings.read().chat && prompt.value.trim() === "") return prompt.focus();
  const { url, body, ...probabilities } = compose({ onwards });
  running = new AbortController();
  const { signal } = running;
  clearError();
  tip.hide();
  const follow = createFollower(output, !onwards && "messages" in body);
  const answer = onwards && conversation.answer || beginAnswer();
  answer.begin();
  refresh();
  const clock = createClock();
  let outcome = "stopped";
  try {
    for await (const delta of completeWithin(url, { ...body, ...probabilities }, key.value, signal)) {
      answer.append(delta);
      follow();
      clock.count(delta.tokens.length);
      speed.textContent = clock.toString();
      if (delta.finish) outcome = ending(delta.finish, clock.total < body.max_tokens);
    }
  } catch (error) {
    if (!signal.aborted) outcome = fail(error);
    if (outcome === "" && "messages" in body && answer.length === 0) prompt.value = conversation.takeBack();
  }
  running = undefined;
  refresh();
  if (outcome === "") speed.textContent = clock.total === 0 ? "" : clock.toString();
  else speed.textContent = `${clock} · ${outcome}`;
  if (outcome !== "") announce(`${clock}, ${outcome}. ${answer.text}`);
}

/** @param {"stop" | "length"} finish @param {boolean} shorter than asked for */
function ending(finish, shorter) {
  if (finish === "stop") return "at its end";
  return shorter ? "at the end of the model's context" : "at the length asked for";
}

/**
 * Goes on from a token, or from another one in its place.
 *
 * @param {import("./conversation.js").Tokens} answer
 * @param {number} index
 * @param {string} [label]
 */
function goOnFrom(answer, index, label) {
  if (running) return announce("Stop first, then go on from a token");
  if (label !== undefined && isBytes(label)) return;
  tip.hide();
  conversation.backTo(answer);
  answer.cut(index, label);
  answer.focus(answer.length - 1);
  run({ onwards: true });
}

function refresh() {
  const { chat } = settings.read();
  const text = conversation.answer?.text ?? "";
  generate.disabled = running !== undefined || models.value === "";
  goOn.disabled = generate.disabled || text === "";
  stop.disabled = !running;
  copy.disabled = text === "";
  clear.disabled = running !== undefined || conversation.empty;
  document.body.classList.toggle("running", running !== undefined);
  document.body.classList.toggle("chat", chat);
}

/** Where a conversation is held, what is written comes after what was said; a prompt comes before its answer. */
function arrange() {
  const { chat } = settings.read();
  tip.hide();
  conversation.clear();
  if (chat) form.before(section);
  else form.after(section);
  generate.textContent = chat ? "Send" : "Generate";
  promptLabel.textContent = chat ? "Message" : "Prompt";
  heading.textContent = chat ? "Conversation" : "Completion";
  prompt.placeholder = chat ? "Say something." : "Write the beginning; the model goes on.";
  prompt.rows = chat ? 2 : 4;
  speed.textContent = "";
  clearError();
  refresh();
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
    speed.textContent = "";
    clearError();
    refresh();
  } catch (error) {
    const later = error instanceof ApiError && (error.status === 0 || error.status === 503);
    if (!later) return void fail(error);
    const why = error.status === 0 ? "waiting for the server" : "the model is being loaded";
    if (speed.textContent !== why) announce(why);
    speed.textContent = why;
    setTimeout(listModels, 1000 * (error.retryAfter ?? 2));
  }
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
clear.addEventListener("click", () => {
  tip.hide();
  conversation.clear();
  speed.textContent = "";
  clearError();
  refresh();
  prompt.focus();
});
for (const mode of document.getElementsByName("mode")) {
  mode.addEventListener("change", () => {
    running?.abort();
    arrange();
  });
}
copies(copy, () => (settings.read().chat ? "" : prompt.value) + (conversation.answer?.text ?? ""));
copies(get("curl", HTMLButtonElement), () => {
  const { url, body } = compose({ onwards: false });
  return curlCommand(url.href, body, key.value !== "");
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run({ onwards: event.shiftKey && !goOn.disabled });
  } else if (event.key === "Escape") {
    tip.hide();
    running?.abort();
  }
});

arrange();
listModels();
