/** The embedded corpus: all of it, with titles, and under its name for prepare. */
import assert from "node:assert/strict";
import { corpus, corpusFiles } from "../../train/corpus.ts";
import { findSources } from "../../train/prepare_sources.ts";

Deno.test("the corpus has 233 addresses with titles of their own, in the order of their years", async () => {
  const addresses = await corpus();
  assert.equal(addresses.length, 233);
  assert.equal(new Set(addresses.map(({ title }) => title)).size, 233);
  assert.equal(addresses[0].title, "George Washington, 1790");
  assert(addresses.some(({ title }) => title === "William J. Clinton, 1994"));
  const years = addresses.map(({ title }) => Number(title.slice(-4)));
  assert.deepEqual(years, years.toSorted((a, b) => a - b));
  assert(addresses[0].text.startsWith("Fellow-Citizens of the Senate and House of Representatives"));
  assert(addresses.reduce((sum, { text }) => sum + text.length, 0) > 10_000_000);
});

Deno.test("prepare knows the corpus by name, and names its files without this machine's folders", async () => {
  const sources = await findSources(["sotu"], {});
  assert.deepEqual(sources.map(({ location }) => location.kind === "file" && location.path), await corpusFiles());
  assert.equal(sources[0].path, "sotu/1790_george_washington_n.txt");
});
