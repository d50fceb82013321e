/** GPT-2's byte alphabet: a printable character for every byte, in which vocabularies are written. It knows no tokens. */

function alphabetByByte(): string[] {
  const printable = (byte: number) =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let others = 0;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : 256 + others++));
}

/** The character that stands for each byte: printable Latin-1 for itself, the others from U+0100 on (Radford et al. 2019). */
export const byteCharacters: readonly string[] = alphabetByByte();

/** The bytes in the order of their characters, which is the order of GPT-2's first 256 ids. */
export const bytesInAlphabetOrder: readonly number[] = byteCharacters
  .map((_, byte) => byte)
  .sort((a, b) => byteCharacters[a].charCodeAt(0) - byteCharacters[b].charCodeAt(0));

const byteOfCharacter = new Int16Array(512).fill(-1);
byteCharacters.forEach((character, byte) => byteOfCharacter[character.charCodeAt(0)] = byte);

const encoder = new TextEncoder();

/** The bytes a vocabulary entry stands for; an entry with a character outside the alphabet stands for its own UTF-8. */
export function bytesOfToken(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const code = token.charCodeAt(i);
    const byte = code < 512 ? byteOfCharacter[code] : -1;
    if (byte < 0) return encoder.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}

/** How bytes are written in a vocabulary. */
export function tokenOfBytes(bytes: Iterable<number>): string {
  let token = "";
  for (const byte of bytes) token += byteCharacters[byte];
  return token;
}
