// @ts-check
/** Asks the server and reads its events: text with the probability of each token, errors in words. It knows no page. */

/**
 * @typedef {{ readonly label: string, readonly logprob: number }} Alternative
 *
 * @typedef {object} Token A token as the API names it: its text, or `bytes:\xe2\x82` where it is no whole characters.
 * @property {string} label
 * @property {number} logprob
 * @property {number} offset in code points from the start of the answer
 * @property {readonly Alternative[]} top likeliest first, the token itself among them
 *
 * @typedef {object} Delta
 * @property {string} text
 * @property {readonly Token[]} tokens which begin in the text
 * @property {"stop" | "length" | null} finish
 *
 * @typedef {object} Logprobs of a completion; the i-th entries belong together
 * @property {string[]} tokens
 * @property {number[]} token_logprobs
 * @property {Record<string, number>[]} top_logprobs
 * @property {number[]} text_offset
 *
 * @typedef {object} ChatToken
 * @property {string} token
 * @property {number} logprob
 * @property {number[]} bytes
 * @property {{ token: string, logprob: number }[]} [top_logprobs]
 *
 * @typedef {object} Choice of an event: a completion's has `text`, a chat's `delta`
 * @property {string} [text]
 * @property {{ content?: string }} [delta]
 * @property {"stop" | "length" | null} finish_reason
 * @property {Partial<Logprobs> & { content?: ChatToken[] } | null} logprobs
 *
 * @typedef {{ error?: { message: string }, choices?: Choice[] }} AnswerEvent
 */

/** A refusal or a failure, as the server puts it. */
export class ApiError extends Error {
  /**
   * @param {number} status of the response; 0 where the connection failed
   * @param {string} message
   * @param {{ code?: string | null, param?: string | null, retryAfter?: number }} [more] retryAfter in seconds
   */
  constructor(status, message, { code = null, param = null, retryAfter } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
  }
}

/**
 * Asks for something; throws an ApiError for every answer but a good one.
 *
 * @param {URL} url
 * @param {string} key
 * @param {RequestInit} [init]
 */
export async function ask(url, key, init = {}) {
  const headers = { ...init.headers, ...(key !== "" && { Authorization: `Bearer ${key}` }) };
  const response = await fetch(url, { ...init, headers }).catch((error) => {
    throw init.signal?.aborted ? error : new ApiError(0, error.message);
  });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({ error: {} }));
  const seconds = Number(response.headers.get("Retry-After") ?? NaN);
  throw new ApiError(response.status, error?.message ?? response.statusText, {
    code: error?.code,
    param: error?.param,
    retryAfter: Number.isFinite(seconds) ? seconds : undefined,
  });
}

/**
 * Streams the answer to a completion or chat request. Throws an ApiError where it is refused, fails, breaks off or is aborted on the way.
 *
 * @param {URL} url
 * @param {object} body
 * @param {string} key
 * @param {AbortSignal} signal
 * @returns {AsyncGenerator<Delta>}
 */
export async function* complete(url, body, key, signal) {
  const headers = { "Content-Type": "application/json" };
  const chatToken = chatTokens();
  const response = await ask(url, key, { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const data of readEvents(/** @type {ReadableStream<Uint8Array<ArrayBuffer>>} */ (response.body))) {
    if (data === "[DONE]") return;
    /** @type {AnswerEvent} */
    const event = JSON.parse(data);
    if (event.error) throw new ApiError(500, event.error.message);
    for (const choice of event.choices ?? []) {
      const { text, delta, finish_reason, logprobs } = choice;
      const tokens = logprobs?.content?.map(chatToken) ?? completionTokens(logprobs);
      yield { text: text ?? delta?.content ?? "", tokens, finish: finish_reason };
    }
  }
  throw new ApiError(0, "the answer isn't complete");
}

/**
 * Like complete(); where more tokens are asked for than the model's context has room for, as many as it has.
 *
 * @param {URL} url
 * @param {import("./request.js").Body} body
 * @param {string} key
 * @param {AbortSignal} signal
 */
export async function* completeWithin(url, body, key, signal) {
  try {
    yield* complete(url, body, key, signal);
  } catch (error) {
    if (!(error instanceof ApiError) || error.code !== "context_length_exceeded") throw error;
    const room = await roomFor(url, body, key, signal);
    if (room !== undefined && room <= 0) throw error;
    yield* complete(url, { ...body, max_tokens: room }, key, signal);
  }
}

/**
 * How many tokens have room after a prompt; for a chat, whose prompt only the server knows, it is left to the server.
 *
 * @param {URL} url
 * @param {import("./request.js").Body} body
 * @param {string} key
 * @param {AbortSignal} signal
 * @returns {Promise<number | undefined>}
 */
async function roomFor(url, { model, prompt, max_tokens }, key, signal) {
  if (prompt === undefined) return max_tokens === undefined ? 0 : undefined;
  const headers = { "Content-Type": "application/json" };
  const init = { method: "POST", headers, body: JSON.stringify({ model, prompt }), signal };
  const { count, max_model_len } = await (await ask(new URL("../tokenize", url), key, init)).json();
  return max_model_len - Math.max(1, count);
}

/**
 * @param {Choice["logprobs"]} logprobs
 * @returns {Token[]}
 */
function completionTokens(logprobs) {
  return (logprobs?.tokens ?? []).map((label, i) => ({
    label,
    logprob: logprobs?.token_logprobs?.[i] ?? 0,
    offset: logprobs?.text_offset?.[i] ?? 0,
    top: likeliestFirst(
      Object.entries(logprobs?.top_logprobs?.[i] ?? {}).map(([label, logprob]) => ({ label, logprob })),
    ),
  }));
}

/**
 * Reads the tokens of a chat's answer in their order: where each begins follows from the bytes before it.
 *
 * @returns {(token: ChatToken) => Token}
 */
function chatTokens() {
  const utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  let offset = 0;
  return ({ token, logprob, bytes, top_logprobs = [] }) => {
    const begin = offset;
    offset += [...utf8.decode(Uint8Array.from(bytes), { stream: true })].length;
    const all = top_logprobs.map((one) => ({ label: one.token, logprob: one.logprob }));
    if (!all.some(({ label }) => label === token)) all.push({ label: token, logprob });
    return { label: token, logprob, offset: begin, top: likeliestFirst(all) };
  };
}

/** @param {Alternative[]} all */
const likeliestFirst = (all) => all.sort((a, b) => b.logprob - a.logprob);

/**
 * The data of server-sent events, without comments, however the bytes were cut.
 *
 * @param {ReadableStream<Uint8Array<ArrayBuffer>>} body
 * @returns {AsyncGenerator<string>}
 */
export async function* readEvents(body) {
  let rest = "";
  /** @type {string[]} */
  let data = [];
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((error) => {
        throw new ApiError(0, error.message);
      });
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n|\r(?=[^])/); // a \r at the end may be half of \r\n
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line !== "" || data.length === 0) continue;
        yield data.join("\n");
        data = [];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * What went wrong and what to do about it.
 *
 * @param {unknown} error
 * @param {boolean} withKey whether a key was sent
 */
export function explain(error, withKey) {
  if (!(error instanceof ApiError)) return `This page failed: ${error instanceof Error ? error.message : error}.`;
  const { status, code, message, retryAfter } = error;
  const when = retryAfter === undefined ? "in a moment" : `in ${retryAfter} second${retryAfter === 1 ? "" : "s"}`;
  if (status === 0) return `The connection to the server is lost (${message}). Is it still running?`;
  if (status === 401 && withKey) return "The server doesn't take this API key. Enter another and generate again.";
  if (status === 401) return "The server asks for an API key. Enter it and generate again.";
  if (status === 429) return `The server has too much to do. Try again ${when}.`;
  if (status === 503) return `The server can't answer yet (${message}). Try again ${when}.`;
  if (code === "no_chat_template") {
    return "This model has no chat template. Take Completion, or serve it with --chat-template chatml or a file.";
  }
  if (status >= 500) return `The server failed: ${message}.`;
  return `${message}.`;
}
