/** GPT-2's words: the hand-written scanner against the published pattern. */
import fc from "fast-check";
import assert from "node:assert/strict";
import { gpt2Pattern, gpt2WordEnd } from "../../model/gpt2_words.ts";
import { scripts, unicodeText } from "./tokenizer_oracles.ts";

function scanned(text: string): string[] {
  const bytes = new TextEncoder().encode(text);
  const words: string[] = [];
  for (let from = 0; from < bytes.length;) {
    const to = gpt2WordEnd(bytes, from, bytes.length);
    words.push(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes.subarray(from, to)));
    from = to;
  }
  return words;
}

function matched(text: string): string[] {
  return text.match(gpt2Pattern) ?? [];
}

Deno.test("the scanner divides text as the pattern does", async (t) => {
  await t.step("text in many scripts", () => assert.deepEqual(scanned(scripts), matched(scripts)));
  await t.step("random Unicode", () => {
    fc.assert(fc.property(unicodeText, (text) => assert.deepEqual(scanned(text), matched(text))), { numRuns: 2000 });
  });
  await t.step("every string of five from the characters that matter", () => {
    const characters = [" ", "\n", "'", "s", "l", "é", "4", "!", "\u2003", "🙂"];
    const text = (n: number) => Array.from({ length: 5 }, (_, i) => characters[Math.floor(n / 10 ** i) % 10]).join("");
    for (let n = 0; n < 100_000; n++) {
      const words = scanned(text(n));
      if (words.join("|") !== matched(text(n)).join("|")) assert.deepEqual(words, matched(text(n)));
    }
  });
  await t.step("every character after a letter, a number, a mark and a space", () => {
    for (let code = 0; code < 0x110000; code += code < 0x3400 ? 1 : 37) {
      if (code >= 0xd800 && code < 0xe000) continue;
      const character = String.fromCodePoint(code);
      const text = `a${character}7${character}!${character} ${character}${character}a`;
      if (scanned(text).join("|") !== matched(text).join("|")) assert.deepEqual(scanned(text), matched(text));
    }
  });
});
