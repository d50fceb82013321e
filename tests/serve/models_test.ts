/** Several models in one app: names, lazy opening, failures, closing. */
import assert from "node:assert/strict";
import { UserError } from "../../model/errors.ts";
import { createApp } from "../../serve/app.ts";
import { openModels } from "../../serve/models.ts";
import { mockEngine } from "./mock_engine.ts";
import { bytes, post, textTokens } from "./serving.ts";

function mockSource(name: string, text: string, lazy = false) {
  const engine = mockEngine({ say: () => [...textTokens(text), 256] });
  const source = {
    name,
    lazy,
    opened: 0,
    engine,
    broken: false,
    async open() {
      source.opened++;
      await new Promise((resolve) => setTimeout(resolve, 5));
      if (source.broken) throw new UserError("no weights");
      return { name, engine, tokenizer: bytes, [Symbol.asyncDispose]: () => engine[Symbol.asyncDispose]() };
    },
  };
  return source;
}

Deno.test("each model answers under its name; a lazy one is opened once, when asked for", async () => {
  const [now, later] = [mockSource("now", "one"), mockSource("later", "two", true)];
  {
    await using app = await createApp({ model: [now, later] });
    assert.deepEqual([now.opened, later.opened], [1, 0]);
    const listed = await (await app.request("/v1/models")).json();
    assert.deepEqual(listed.data.map(({ id }: { id: string }) => id), ["now", "later"]);
    assert.equal((await app.request("/health")).status, 200);
    const ask = async (model: string) => (await (await post(app, { model, prompt: "a" })).json()).choices[0].text;
    assert.deepEqual(await Promise.all(["now", "later", "later"].map(ask)), ["one", "two", "two"]);
    assert.equal(later.opened, 1);
    const unknown = await post(app, { model: "never", prompt: "a" });
    const { error } = await unknown.json();
    assert.deepEqual([unknown.status, error.param, error.code], [404, "model", "model_not_found"]);
    assert.match(error.message, /'now', 'later'.*'never'/);
  }
  assert.ok(now.engine.disposed && later.engine.disposed);
});

Deno.test("a lazy model that can't be opened is unavailable, and tried again by the next request", async () => {
  const lazy = Object.assign(mockSource("lazy", "text", true), { broken: true });
  await using app = await createApp({ model: lazy });
  const refused = await post(app, { model: "lazy", prompt: "a" });
  assert.equal(refused.status, 503);
  assert.match((await refused.json()).error.message, /no weights/);
  lazy.broken = false;
  assert.equal((await post(app, { model: "lazy", prompt: "a" })).status, 200);
  assert.equal(lazy.opened, 2);
});

Deno.test("what can't be opened at the start closes what was opened; a name is given once", async () => {
  const [good, bad] = [mockSource("good", "a"), Object.assign(mockSource("bad", "b"), { broken: true })];
  await assert.rejects(openModels([good, bad]), /no weights/);
  assert.ok(good.engine.disposed);
  const same = mockSource("good", "c");
  await assert.rejects(openModels([good, same]), (error) => error instanceof UserError && error.exitCode === 2);
  assert.equal(same.opened, 0);
});

Deno.test("models closed while a lazy one is being opened close it too", async () => {
  const lazy = mockSource("lazy", "text", true);
  const models = await openModels([lazy]);
  const refused = assert.rejects(models.get("lazy"), /closing|can't answer/);
  await models[Symbol.asyncDispose]();
  await refused;
  assert.ok(lazy.engine.disposed);
});
