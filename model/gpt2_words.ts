/** GPT-2's division of text into words, scanned by hand over UTF-8. It knows no tokens. */

/** The specification (Radford et al. 2019); its whitespace is Unicode's White_Space, not JavaScript's \s. */
export const gpt2Pattern =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

const OTHER = 0;
const LETTER = 1;
const NUMBER = 2;
const SPACE = 3;

const PAGE = 256;
const pages: (Uint8Array | undefined)[] = new Array(0x110000 / PAGE);
const ascii = classesFrom(0);

function classesFrom(first: number): Uint8Array {
  const classes = new Uint8Array(PAGE);
  for (let i = 0; i < PAGE; i++) {
    const character = String.fromCodePoint(first + i);
    if (/^\p{L}$/u.test(character)) classes[i] = LETTER;
    else if (/^\p{N}$/u.test(character)) classes[i] = NUMBER;
    else if (/^\p{White_Space}$/u.test(character)) classes[i] = SPACE;
    else classes[i] = OTHER;
  }
  return classes;
}

function wideClass(bytes: Uint8Array, at: number): number {
  const lead = bytes[at];
  let code = bytes[at + 1] & 0x3f;
  if (lead < 0xe0) code |= (lead & 0x1f) << 6;
  else if (lead < 0xf0) code = (lead & 0x0f) << 12 | code << 6 | bytes[at + 2] & 0x3f;
  else code = (lead & 0x07) << 18 | code << 12 | (bytes[at + 2] & 0x3f) << 6 | bytes[at + 3] & 0x3f;
  const page = pages[code >> 8] ??= classesFrom(code & ~0xff);
  return page[code & 0xff];
}

function classAt(bytes: Uint8Array, at: number): number {
  return bytes[at] < 0x80 ? ascii[bytes[at]] : wideClass(bytes, at);
}

function runEnd(bytes: Uint8Array, from: number, to: number, wanted: number): number {
  let at = from;
  while (at < to) {
    const byte = bytes[at];
    if (byte < 0x80) {
      if (ascii[byte] !== wanted) break;
      at++;
    } else {
      if (wideClass(bytes, at) !== wanted) break;
      at += byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
    }
  }
  return at;
}

function contractionEnd(bytes: Uint8Array, from: number, to: number): number {
  const next = from + 1 < to ? bytes[from + 1] : 0;
  if (next === 0x73 || next === 0x74 || next === 0x6d || next === 0x64) return from + 2; // 's 't 'm 'd
  const after = from + 2 < to ? bytes[from + 2] : 0;
  if ((next === 0x72 || next === 0x76) && after === 0x65) return from + 3; // 're 've
  if (next === 0x6c && after === 0x6c) return from + 3; // 'll
  return -1;
}

/** White space before a word leaves its last character to that word, if it is more than one character. */
function spaceEnd(bytes: Uint8Array, from: number, to: number): number {
  const end = runEnd(bytes, from, to, SPACE);
  if (end === to) return end;
  let last = end - 1;
  while ((bytes[last] & 0xc0) === 0x80) last--;
  return last > from ? last : end;
}

/** The end of the word that starts at `from`, in well-formed UTF-8 where from < to and both stand between characters. */
export function gpt2WordEnd(bytes: Uint8Array, from: number, to: number): number {
  const byte = bytes[from];
  if (byte === 0x27) {
    const end = contractionEnd(bytes, from, to);
    if (end > 0) return end;
  }
  const start = byte === 0x20 && from + 1 < to ? from + 1 : from;
  const kind = classAt(bytes, start);
  return kind === SPACE ? spaceEnd(bytes, from, to) : runEnd(bytes, start, to, kind);
}
