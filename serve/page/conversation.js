// @ts-check
/// <reference lib="dom" />
/** What was said and answered, in turns; the answer to a prompt is a conversation of one turn. It knows no server. */
import { createTokens } from "./tokens.js";

/**
 * @typedef {ReturnType<typeof createTokens>} Tokens
 *
 * @typedef {object} Turn
 * @property {HTMLElement} element
 * @property {string} said by the user; empty where the model speaks
 * @property {Tokens} [tokens] of the model
 */

/**
 * @param {HTMLElement} container
 * @param {Pick<Parameters<typeof createTokens>[1], "onShow" | "onLeave">} hooks
 * @param {(tokens: Tokens, index: number, label: string | undefined) => void} onGoOn
 */
export function createConversation(container, hooks, onGoOn) {
  /** @type {Turn[]} */
  let turns = [];

  /** @param {string} className @param {string} label */
  function group(className, label) {
    const element = document.createElement("div");
    element.className = className;
    element.role = "group";
    element.ariaLabel = label;
    container.append(element);
    return element;
  }

  return {
    /** The model's last turn. */
    get answer() {
      return turns.at(-1)?.tokens;
    },
    get empty() {
      return turns.length === 0;
    },
    /** @returns {import("./request.js").Message[]} */
    messages: () =>
      turns.map(({ said, tokens }) =>
        tokens ? { role: "assistant", content: tokens.text } : { role: "user", content: said }
      ),
    /** @param {string} text */
    say(text) {
      const element = group("said", "You");
      element.textContent = text;
      turns.push({ element, said: text });
    },
    /** Begins the model's turn. */
    listen() {
      const element = group("tokens", "Generated text");
      element.setAttribute("aria-describedby", "tokens_hint");
      const tokens = createTokens(element, { ...hooks, onGoOn: (index, label) => onGoOn(tokens, index, label) });
      turns.push({ element, said: "", tokens });
      return tokens;
    },
    /** Takes back what was said last and not answered; returns it. */
    takeBack() {
      const said = turns.at(-2)?.said ?? "";
      for (const { element } of turns.splice(-2)) element.remove();
      return said;
    },
    /** Forgets what came after an answer. @param {Tokens} tokens */
    backTo(tokens) {
      const at = turns.findIndex((turn) => turn.tokens === tokens);
      for (const { element } of turns.splice(at + 1)) element.remove();
    },
    /** The answer that a token belongs to. @param {import("./tokens.js").Shown} shown */
    answerOf: (shown) => turns.find(({ tokens }) => tokens && tokens.indexOf(shown) >= 0)?.tokens,
    clear() {
      turns = [];
      container.replaceChildren();
    },
  };
}
