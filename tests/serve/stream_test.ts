/** Text let out as it becomes certain: whole characters, and no part of a stop string. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { loadTokenizer } from "../../model/tokenizer.ts";
import { createStopWatch, createTextStream, tokenText } from "../../serve/stream.ts";

const gpt2 = await loadTokenizer("gpt2");
const bytes = await loadTokenizer("bytes");

/** Runs ids through a stream; text and pieces as one, up to a stop. */
function runStream(tokenizer: typeof bytes, ids: Iterable<number>, stops: string[] = []) {
  const stream = createTextStream(tokenizer, stops);
  const chunks = [];
  for (const id of ids) {
    chunks.push(stream.push(id));
    if (chunks.at(-1)!.stopped) break;
  }
  if (!chunks.at(-1)?.stopped) chunks.push(stream.end());
  return {
    chunks: chunks.map((chunk) => chunk.text),
    text: chunks.map((chunk) => chunk.text).join(""),
    pieces: chunks.flatMap((chunk) => chunk.pieces),
    stopped: chunks.at(-1)!.stopped,
  };
}

Deno.test("text comes in whole characters, equal to decoding all at once", () => {
  fc.assert(fc.property(fc.string({ unit: "grapheme" }), (text) => {
    for (const tokenizer of [gpt2, bytes]) {
      const ids = tokenizer.encode(text);
      const result = runStream(tokenizer, ids);
      assert.equal(result.text, text);
      for (const chunk of result.chunks) assert.ok(chunk.isWellFormed() && !chunk.includes("\ufffd"));
    }
  }));
});

Deno.test("bytes that are no UTF-8 decode as at once, byte order marks stay", () => {
  const hostile = fc.array(fc.oneof(
    fc.constantFrom(
      0xef,
      0xbb,
      0xbf,
      0xe2,
      0x82,
      0xac,
      0xf0,
      0x9f,
      0x98,
      0x80,
      0xc0,
      0xed,
      0xa0,
      0xf4,
      0x90,
      0xff,
      0x61,
    ),
    fc.integer({ min: 0, max: 255 }),
  ));
  fc.assert(
    fc.property(hostile, (ids) => {
      assert.equal(runStream(bytes, ids).text, bytes.decode(ids));
    }),
    { numRuns: 2000 },
  );
});

Deno.test("offsets are the code point in which a token's first byte falls", () => {
  const ids = [...bytes.encode("a€😀b")];
  const { pieces } = runStream(bytes, ids);
  assert.deepEqual(pieces.map((piece) => piece.id), ids);
  assert.deepEqual(pieces.map((piece) => piece.offset), [0, 1, 1, 1, 2, 2, 2, 2, 3]);
  const broken = runStream(bytes, [0x61, 0xe2, 0x82, 0x62]); // a, an unfinished €, b
  assert.equal(broken.text, "a\ufffdb");
  assert.deepEqual(broken.pieces.map((piece) => piece.offset), [0, 1, 1, 2]);
});

Deno.test("a stop string ends the text before it, wherever the tokens are cut", () => {
  const cut = fc.tuple(
    fc.string({ unit: fc.constantFrom("a", "b", "€", "😀"), maxLength: 30 }),
    fc.integer({ min: 1, max: 4 }),
  );
  const stops = fc.array(fc.string({ unit: fc.constantFrom("a", "b", "€", "😀"), minLength: 1, maxLength: 4 }), {
    maxLength: 4,
  });
  fc.assert(
    fc.property(cut, stops, ([text, size], stops) => {
      const watch = createStopWatch(stops);
      let out = "";
      let stopped = false;
      for (let at = 0; at < text.length && !stopped; at += size) {
        const step = watch.push(text.slice(at, at + size));
        out += step.text;
        stopped = step.stopped;
      }
      if (!stopped) out += watch.end();
      assert.deepEqual({ out, stopped }, byHand(text, stops));
    }),
    { numRuns: 2000 },
  );
});

/** The rule itself, letter by letter. */
function byHand(text: string, stops: readonly string[]): { out: string; stopped: boolean } {
  for (let end = 1; end <= text.length; end++) {
    const longest = Math.max(
      0,
      ...stops.filter((stop) => text.slice(0, end).endsWith(stop)).map((stop) => stop.length),
    );
    if (longest > 0) return { out: text.slice(0, end - longest), stopped: true };
  }
  return { out: text, stopped: false };
}

Deno.test("no part of a stop string gets out before it is known to be none", () => {
  const { chunks, stopped } = runStream(bytes, bytes.encode("one EN two END three"), ["END"]);
  assert.ok(stopped);
  assert.equal(chunks.join(""), "one EN two ");
  assert.ok(!chunks.some((chunk) => chunk === "E" || chunk === "N"));
});

Deno.test("tokens are released with the character they begin in, and not past a stop", () => {
  const { text, pieces } = runStream(gpt2, gpt2.encode("Hello world, goodbye"), ["ld, "]);
  assert.equal(text, "Hello wor");
  assert.deepEqual(pieces.map((piece) => tokenText(gpt2, piece.id)), ["Hello", " world"]);
  assert.deepEqual(pieces.map((piece) => piece.offset), [0, 5]);
});

Deno.test("a stop string inside the echoed prompt doesn't count", () => {
  const stream = createTextStream(bytes, ["ab"]);
  const echoed = [..."xaby"].map((letter) => stream.echo(letter.charCodeAt(0)).text).join("");
  assert.equal(echoed, "xaby");
  assert.equal(stream.push("a".charCodeAt(0)).text, "");
  assert.deepEqual(stream.push("b".charCodeAt(0)), { text: "", pieces: [], stopped: true });
});

Deno.test("a token that is no text is shown by its bytes; ids without a token have none", () => {
  assert.equal(tokenText(bytes, 0xe2), "bytes:\\xe2");
  assert.equal(tokenText(bytes, 0x41), "A");
  assert.equal(tokenText(bytes, 256), "<|endoftext|>");
  assert.equal(tokenText(bytes, 999), "");
  assert.equal(runStream(bytes, [0x41, 999, 0x42]).text, "AB");
});
