/** Blocks against a plain account of who holds what, over any sequence of calls. */
import assert from "node:assert/strict";
import fc from "fast-check";
import { blockKey, Blocks } from "../../serve/blocks.ts";

Deno.test("blocks are held as often as they were taken and shared, and found until they are needed", () => {
  const action = fc.record({
    kind: fc.constantFrom("take", "share", "publish", "release", "forget"),
    pick: fc.nat(99),
  });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 8 }), fc.array(action, { maxLength: 80 }), (count, actions) => {
      const blocks = new Blocks(count, 4);
      const held: number[] = [];
      const keys = new Map<string, number>();
      for (const { kind, pick } of actions) {
        const key = `key ${pick % 6}`;
        if (kind === "take") {
          const block = blocks.take();
          assert.equal(block === undefined, new Set(held).size === count, "taken where one is free");
          if (block === undefined) continue;
          assert.ok(!held.includes(block));
          for (const [known, at] of keys) if (at === block) keys.delete(known);
          held.push(block);
        } else if (kind === "share") {
          const block = blocks.share(key);
          assert.equal(block, keys.get(key));
          if (block !== undefined) held.push(block);
        } else if (kind === "forget") {
          blocks.forget();
          keys.clear();
        } else if (held.length > 0 && kind === "release") {
          blocks.release(held.splice(pick % held.length, 1)[0]);
        } else if (held.length > 0) {
          const block = held[pick % held.length];
          blocks.publish(block, key);
          if (!keys.has(key) && ![...keys.values()].includes(block)) keys.set(key, block);
        }
        for (let block = 0; block < count; block++) {
          assert.equal(blocks.references(block), held.filter((one) => one === block).length);
        }
        assert.equal(blocks.free, count - new Set(held).size);
        assert.equal(blocks.findable, keys.size);
      }
    }),
    { numRuns: 300 },
  );
});

Deno.test("empty blocks are taken first, then the least recently used", () => {
  const blocks = new Blocks(4, 4);
  const [a, b, c] = [0, 1, 2].map(() => blocks.take()!);
  for (const [block, key] of [[a, "a"], [b, "b"], [c, "c"]] as const) blocks.publish(block, key);
  for (const block of [b, a, c]) blocks.release(block);
  assert.equal(blocks.share("b"), b);
  blocks.release(b);
  const empty = blocks.take()!;
  assert.ok(![a, b, c].includes(empty));
  assert.equal(blocks.take(), a);
  assert.equal(blocks.share("a"), undefined);
  assert.equal(blocks.take(), c);
  assert.equal(blocks.share("b"), b);
  assert.equal(blocks.take(), undefined);
});

Deno.test("a key names the tokens and all before them", () => {
  const first = blockKey("", [1, 2]);
  assert.equal(first, blockKey("", [1, 2]));
  const keys = [first, blockKey(first, [1, 2]), blockKey("", [12]), blockKey("", [1, 3]), blockKey("", [2, 1])];
  assert.equal(new Set(keys).size, keys.length);
});

Deno.test("what nobody holds is neither released nor published", () => {
  const blocks = new Blocks(2, 4);
  assert.throws(() => blocks.release(0), /Cannot release block 0 of 2/);
  assert.throws(() => blocks.publish(1, "key"), /Cannot publish block 1 of 2/);
  assert.throws(() => new Blocks(0, 4), /Cannot make 0 blocks/);
});
