/** Division of text into words as a tokenizer.json's `pre_tokenizer` says. It knows no tokens. */

import { UserError } from "./errors.ts";
import { gpt2Pattern, gpt2WordEnd } from "./gpt2_words.ts";

/** A text's UTF-8 and its words, which follow each other without gaps. */
export interface Words {
  readonly bytes: Uint8Array;
  /** The end of the word that starts at `from`; words must be asked for in order. */
  endOf(from: number): number;
}
export type Splitter = (text: string) => Words;

type Settings = Readonly<Record<string, unknown>>;
type Step = (pieces: readonly string[]) => string[];

const encoder = new TextEncoder();

function gpt2Words(text: string): Words {
  const bytes = encoder.encode(text);
  return { bytes, endOf: (from) => gpt2WordEnd(bytes, from, bytes.length) };
}

function utf8Length(text: string): number {
  let length = text.length;
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code >= 0x80) length += code < 0x800 || (code & 0xf800) === 0xd800 ? 1 : 2; // half a surrogate pair has two of its four bytes
  }
  return length;
}

function wordsOfPieces(pieces: readonly string[]): Words {
  let next = 0;
  return { bytes: encoder.encode(pieces.join("")), endOf: (from) => from + utf8Length(pieces[next++]) };
}

const wordCharacters = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}²³¹¼½¾"; // the last six are numbers, but word characters to Oniguruma
/** What an escape of Oniguruma means in Unicode text: outside a character class, and inside one. */
const escapes: Readonly<Record<string, readonly [outside: string, inside: string | undefined]>> = {
  s: ["\\p{White_Space}", "\\p{White_Space}"],
  S: ["\\P{White_Space}", "\\P{White_Space}"],
  d: ["\\p{Nd}", "\\p{Nd}"],
  D: ["\\P{Nd}", "\\P{Nd}"],
  w: [`[${wordCharacters}]`, wordCharacters],
  W: [`[^${wordCharacters}]`, undefined],
};

function translateEscape(escaped: string, inClass: boolean): string | undefined {
  if (escaped in escapes) return escapes[escaped][inClass ? 1 : 0];
  if (/[nrtfvxupP^$\\.*+?()[\]{}|/]/.test(escaped) || (escaped === "-" && inClass)) return "\\" + escaped;
  return /[A-Za-z0-9]/.test(escaped) ? undefined : escaped;
}

/** A pattern of the `tokenizers` library (Oniguruma) as a JavaScript one. */
function translatePattern(pattern: string): RegExp {
  const fail = (why: string): never => {
    throw new UserError(`its pattern ${JSON.stringify(pattern)} isn't supported: ${why}`);
  };
  let source = "";
  let inClass = false;
  for (let i = 0; i < pattern.length; i++) {
    const character = pattern[i];
    if (character === "\\") {
      const escaped = pattern[++i] ?? "";
      source += translateEscape(escaped, inClass) ?? fail(`it uses \\${escaped}`);
      continue;
    }
    if (inClass && (character === "[" || pattern.startsWith("&&", i))) fail("it has a class within a class");
    if (character === "[") inClass = true;
    else if (character === "]") inClass = false;
    source += character;
  }
  try {
    return new RegExp(source, "gu");
  } catch (error) {
    return fail((error as Error).message);
  }
}

const behaviors = ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"];

/** The matches and what lies between them, in order. */
function cut(text: string, pattern: RegExp, invert: boolean): { text: string; match: boolean }[] {
  const parts: { text: string; match: boolean }[] = [];
  let end = 0;
  for (const found of text.matchAll(pattern)) {
    if (found[0] === "") continue;
    if (found.index > end) parts.push({ text: text.slice(end, found.index), match: invert });
    parts.push({ text: found[0], match: !invert });
    end = found.index + found[0].length;
  }
  if (end < text.length) parts.push({ text: text.slice(end), match: invert });
  return parts;
}

/** Joins neighbouring parts where the behavior says so. */
function joinParts(parts: readonly { text: string; match: boolean }[], behavior: string): string[] {
  if (behavior === "Removed") return parts.filter((part) => !part.match).map((part) => part.text);
  const pieces: string[] = [];
  let before: boolean | undefined;
  for (const { text, match } of parts) {
    const join = behavior === "Contiguous"
      ? match === before
      : behavior === "MergedWithPrevious"
      ? match && before === false
      : behavior === "MergedWithNext"
      ? !match && before === true
      : false;
    if (join) pieces[pieces.length - 1] += text;
    else pieces.push(text);
    before = match;
  }
  return pieces;
}

function splitStep(pattern: RegExp, behavior: string, invert: boolean): Step {
  if (!behaviors.includes(behavior)) {
    throw new UserError(`its Split has behavior ${JSON.stringify(behavior)}, wanted one of ${behaviors.join(", ")}`);
  }
  return (pieces) => pieces.flatMap((piece) => joinParts(cut(piece, pattern, invert), behavior));
}

function splitPattern(pattern: unknown): RegExp {
  const { Regex: regex, String: literal } = (pattern ?? {}) as Settings;
  if (typeof regex === "string") return translatePattern(regex);
  if (typeof literal === "string" && literal !== "") {
    return new RegExp(literal.replace(/[^\p{L}\p{N}\s]/gu, escapeInPattern), "gu");
  }
  throw new UserError(`its Split has pattern ${JSON.stringify(pattern)}, wanted {"Regex": ...} or {"String": ...}`);
}

/** A character written so that it stands for itself in a pattern. */
export function escapeInPattern(character: string): string {
  return `\\u{${character.codePointAt(0)!.toString(16)}}`;
}

function prefixStep(pieces: readonly string[]): string[] {
  return pieces.map((piece) => piece === "" || piece.startsWith(" ") ? piece : " " + piece);
}

function stepsOf(settings: Settings): Step[] {
  if (settings.type === "ByteLevel") {
    const steps: Step[] = settings.add_prefix_space === true ? [prefixStep] : [];
    return settings.use_regex === false ? steps : [...steps, splitStep(gpt2Pattern, "Isolated", false)];
  }
  if (settings.type === "Split") {
    return [splitStep(splitPattern(settings.pattern), String(settings.behavior), settings.invert === true)];
  }
  if (settings.type === "Digits") {
    return [splitStep(/\p{N}/gu, settings.individual_digits === true ? "Isolated" : "Contiguous", false)];
  }
  throw new UserError(
    `its pre-tokenizer has a ${
      JSON.stringify(settings.type)
    }, supported are ByteLevel, Split, Digits and their Sequence`,
  );
}

/** The pre-tokenizers in order. The last must be ByteLevel and the only one. */
export function preTokenizerSequence(preTokenizer: unknown): readonly Settings[] {
  const outer = (preTokenizer ?? {}) as Settings;
  const sequence = (outer.type === "Sequence" ? outer.pretokenizers : [outer]) as Settings[];
  const places = Array.isArray(sequence) ? sequence.flatMap((step, i) => step?.type === "ByteLevel" ? [i] : []) : [];
  if (places.length !== 1 || places[0] !== sequence.length - 1) {
    throw new UserError(
      `its pre-tokenizer is ${JSON.stringify(outer.type ?? null)}, wanted "ByteLevel" or a Sequence that ends with it`,
    );
  }
  return sequence;
}

/** Throws UserError, with the fault alone, for a pre-tokenizer that isn't byte-level or has a part that isn't supported. */
export function createSplitter(preTokenizer: unknown): Splitter {
  const sequence = preTokenizerSequence(preTokenizer);
  const [only] = sequence;
  if (sequence.length === 1 && only.add_prefix_space !== true && only.use_regex !== false) return gpt2Words;
  const steps = sequence.flatMap(stepsOf);
  return (text) => {
    let pieces = [text.toWellFormed()];
    for (const step of steps) pieces = step(pieces);
    return wordsOfPieces(pieces);
  };
}
