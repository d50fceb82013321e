/** Finds a tokenizer's added tokens in text, as the `tokenizers` library does. It knows no words and no merges. */

import { escapeInPattern } from "./pre_tokenizer.ts";

export interface AddedToken {
  readonly id: number;
  readonly content: string;
  /** Only where no word character stands on either side. */
  readonly single_word: boolean;
  /** Takes the white space on its left with it. */
  readonly lstrip: boolean;
  /** Takes the white space on its right with it. */
  readonly rstrip: boolean;
  /** Sought in normalized text, after those that aren't. */
  readonly normalized: boolean;
  readonly special: boolean;
}

/** A piece of text between added tokens, or an added token's id. */
export type Segment = string | number;
export type SegmentText = (text: string, allowSpecial: boolean) => Segment[];

const wordCharacter = String.raw`[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\u200c\u200d]`;
const endsInWord = new RegExp(`${wordCharacter}$`, "u");
const startsWithWord = new RegExp(`^${wordCharacter}`, "u");

function touchesWord(text: string, from: number, to: number): boolean {
  return endsInWord.test(text.slice(Math.max(0, from - 2), from)) || startsWithWord.test(text.slice(to, to + 2));
}

function spaceBefore(text: string, from: number, to: number): number {
  while (to > from && /\p{White_Space}/u.test(text[to - 1])) to--;
  return to;
}

function spaceAfter(text: string, from: number): number {
  while (from < text.length && /\p{White_Space}/u.test(text[from])) from++;
  return from;
}

/** Leftmost first, of several the longest. A special token that isn't allowed hides what lies within it and stays text. */
function createFinder(tokens: readonly AddedToken[]): SegmentText {
  if (tokens.length === 0) return (text) => [text];
  const byContent = new Map(tokens.map((token) => [token.content, token]));
  const longestFirst = [...byContent.keys()].sort((a, b) => b.length - a.length);
  const pattern = new RegExp(longestFirst.map((content) => [...content].map(escapeInPattern).join("")).join("|"), "gu");

  return (text, allowSpecial) => {
    const segments: Segment[] = [];
    let end = 0;
    for (const found of text.matchAll(pattern)) {
      const token = byContent.get(found[0])!;
      if (token.special && !allowSpecial) continue;
      let from = found.index;
      let to = from + found[0].length;
      if (from < end) continue;
      if (token.single_word && (touchesWord(text, from, to))) continue;
      if (token.lstrip) from = spaceBefore(text, end, from);
      if (token.rstrip) to = spaceAfter(text, to);
      if (from > end) segments.push(text.slice(end, from));
      segments.push(token.id);
      end = to;
    }
    if (end < text.length) segments.push(text.slice(end));
    return segments;
  };
}

/** Cuts text at added tokens; what remains is normalized. */
export function createSegmenter(tokens: readonly AddedToken[], normalize: (text: string) => string): SegmentText {
  const raw = createFinder(tokens.filter((token) => !token.normalized));
  const normalized = createFinder(
    tokens.filter((token) => token.normalized).map((token) => ({ ...token, content: normalize(token.content) })),
  );
  return (text, allowSpecial) =>
    raw(text, allowSpecial).flatMap((segment) =>
      typeof segment === "number" ? [segment] : normalized(normalize(segment), allowSpecial)
    );
}
