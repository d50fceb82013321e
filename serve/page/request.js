// @ts-check
/** What is asked of the server: settings become a request's body, a body a command line. It knows no page. */

/**
 * @typedef {object} Settings
 * @property {string} model
 * @property {number} temperature
 * @property {number} topP
 * @property {number} topK 0 for all
 * @property {number} minP
 * @property {number} maxTokens
 * @property {number} repetitionPenalty
 * @property {number | undefined} seed
 * @property {readonly string[]} stop
 * @property {boolean} chat
 * @property {string} system what the assistant is told first; empty for nothing
 *
 * @typedef {{ readonly role: "user" | "assistant", readonly content: string }} Message
 *
 * @typedef {{ readonly model: string, readonly prompt?: string, readonly max_tokens?: number }} Body a request's, in part
 */

/**
 * The fields that every request has; what has no effect is left out.
 *
 * @param {Settings} settings
 */
function sampling(settings) {
  return {
    max_tokens: settings.maxTokens,
    temperature: settings.temperature,
    top_p: settings.topP,
    ...(settings.topK > 0 && { top_k: settings.topK }),
    ...(settings.minP > 0 && { min_p: settings.minP }),
    ...(settings.repetitionPenalty !== 1 && { repetition_penalty: settings.repetitionPenalty }),
    ...(settings.stop.length > 0 && { stop: settings.stop }),
    ...(settings.seed !== undefined && { seed: settings.seed }),
    stream: true,
  };
}

/** @param {Settings} settings @param {string} prompt */
export const completionBody = (settings, prompt) => ({ model: settings.model, prompt, ...sampling(settings) });

/**
 * The body of a chat request. A conversation that ends in the assistant's words is gone on with.
 *
 * @param {Settings} settings
 * @param {readonly Message[]} messages
 */
export function chatBody(settings, messages) {
  const system = settings.system === "" ? [] : [{ role: "system", content: settings.system }];
  const onwards = messages.at(-1)?.role === "assistant";
  return {
    model: settings.model,
    messages: [...system, ...messages],
    ...(onwards && { continue_final_message: true, add_generation_prompt: false }),
    ...sampling(settings),
  };
}

/**
 * Stop texts as they are typed, one a line: `\n`, `\t` and `\\` stand for what they do in most languages.
 *
 * @param {string} typed
 */
export function parseStops(typed) {
  /** @type {Record<string, string>} */
  const escapes = { n: "\n", t: "\t", "\\": "\\" };
  return typed.split("\n").filter((line) => line !== "").map((line) =>
    line.replaceAll(/\\([nt\\])/g, (_, letter) => escapes[letter])
  );
}

/** @param {string} text as one word of a shell's command line */
const shellWord = (text) => /^[\w./:-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

/**
 * A command line that sends the same request; a key is taken from the environment, so that it isn't copied about.
 *
 * @param {string} url
 * @param {object} body
 * @param {boolean} withKey
 */
export function curlCommand(url, body, withKey) {
  const key = withKey ? ` \\\n  -H "Authorization: Bearer $WGPT_API_KEY"` : "";
  return `curl -N ${shellWord(url)} \\\n  -H 'Content-Type: application/json'${key} \\\n  -d ${
    shellWord(JSON.stringify(body))
  }`;
}
