/** Clients that don't keep to HTTP, on real sockets: none is answered with a 5xx, holds others up, or leaves anything behind. */
import assert from "node:assert/strict";
import { type RunningServer, startServer } from "../../serve/server.ts";
import { type MockEngine, mockEngine } from "./mock_engine.ts";
import { bytes, until } from "./serving.ts";

const BODY = JSON.stringify({ model: "mock", prompt: "a", max_tokens: 3 });
const HEAD = "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n";
const RIGHT = `${HEAD}Content-Length: ${BODY.length}\r\n\r\n${BODY}`;

interface Served extends AsyncDisposable {
  readonly server: RunningServer;
  readonly engine: MockEngine;
}

async function serve(options: { bodySeconds?: number } = {}): Promise<Served> {
  const engine = mockEngine({ delay: 1 });
  const model = { name: "mock", engine, tokenizer: bytes };
  const log = { info() {}, error: (_: string, fields: unknown) => assert.fail(JSON.stringify(fields)) };
  const server = await startServer({ hostname: "127.0.0.1", port: 0, model, log, ...options });
  return { server, engine, [Symbol.asyncDispose]: () => server[Symbol.asyncDispose]() };
}

/** Sends bytes as they are and reads what comes until the server closes, or for so long. */
async function send(
  { server }: Served,
  texts: readonly string[],
  { milliseconds = 400, half = false, pause = 1 } = {},
) {
  const connection = await Deno.connect({ hostname: "127.0.0.1", port: Number(new URL(server.url).port) });
  const timer = setTimeout(() => connection.close(), milliseconds);
  const reading = readAll(connection);
  try {
    for (const text of texts) {
      const data = new TextEncoder().encode(text);
      for (let sent = 0; sent < data.length;) sent += await connection.write(data.subarray(sent));
      if (pause > 0) await new Promise((resolve) => setTimeout(resolve, pause));
    }
    if (half) await connection.closeWrite();
  } catch {
    // The server has closed: what it said is still read.
  }
  const answer = await reading;
  clearTimeout(timer);
  try {
    connection.close();
  } catch {
    // The timer has closed it.
  }
  return answer;
}

/** What comes until either end closes. */
async function readAll(connection: Deno.TcpConn): Promise<string> {
  const buffer = new Uint8Array(65536);
  let answer = "";
  try {
    for (let count; (count = await connection.read(buffer)) !== null;) {
      answer += new TextDecoder().decode(buffer.subarray(0, count));
    }
  } catch {
    // Closed.
  }
  return answer;
}

const statuses = (answer: string) => [...answer.matchAll(/HTTP\/1\.1 (\d{3})/g)].map(([, status]) => Number(status));

Deno.test("sockets that break the rules get a 4xx or nothing, and others their answers", async () => {
  await using served = await serve();
  const cases: Record<string, readonly string[]> = {
    "no HTTP": ["\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n"],
    "no version": ["POST /v1/completions\r\n\r\n"],
    "an endless target": [`GET /${"a".repeat(100_000)} HTTP/1.1\r\nHost: a\r\n\r\n`],
    "a flood of headers": [HEAD, ...Array.from({ length: 20 }, (_, i) => `X-${i}: ${"y".repeat(20_000)}\r\n`), "\r\n"],
    "a thousand headers": [HEAD + Array.from({ length: 1000 }, (_, i) => `X-${i}: y\r\n`).join("") + "\r\n"],
    "two lengths": [`${HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\n${BODY}`],
    "a negative length": [`${HEAD}Content-Length: -1\r\n\r\n${BODY}`],
    "a length and chunks": [`${HEAD}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n`],
    "chunks of garbage": [`${HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n${BODY}\r\n0\r\n\r\n`],
    "a chunk too short": [`${HEAD}Transfer-Encoding: chunked\r\n\r\nff\r\n${BODY}`],
    "too short a body": [`${HEAD}Content-Length: 500\r\n\r\n${BODY}`],
    "too long a body": [`${HEAD}Content-Length: 5\r\n\r\n${BODY}`],
    "an enormous length": [`${HEAD}Content-Length: 99999999999\r\n\r\n${BODY}`],
    "a NUL in a header": [`${HEAD}X: a\0b\r\nContent-Length: 0\r\n\r\n`],
    "no type": [`POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: ${BODY.length}\r\n\r\n${BODY}`],
    "an unknown method": ["BREW /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n"],
    "HTTP/2 without asking": ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
  };
  const answers = await Promise.all(
    Object.entries(cases).map(async ([name, texts]) => [name, await send(served, texts)]),
  );
  for (const [name, answer] of answers) {
    for (const status of statuses(answer)) assert.ok(status >= 200 && status < 500, `${name}: ${answer.slice(0, 300)}`);
  }
  assert.deepEqual(statuses(await send(served, [RIGHT])), [200]);
  assert.deepEqual(statuses(await send(served, [RIGHT + RIGHT + RIGHT])), [200, 200, 200]); // pipelined
  const expecting = `${HEAD}Expect: 100-continue\r\nContent-Length: ${BODY.length}\r\n\r\n`;
  assert.equal(statuses(await send(served, [expecting, BODY])).at(-1), 200);
});

Deno.test("clients that close half, leave early or dribble end what they began", async () => {
  await using served = await serve({ bodySeconds: 0.2 });
  const long = JSON.stringify({ model: "mock", prompt: "a", max_tokens: 250, stream: true });
  const request = `${HEAD}Content-Length: ${long.length}\r\n\r\n${long}`;
  await Promise.all([
    ...Array.from({ length: 10 }, () => send(served, [request], { milliseconds: 20 })),
    ...Array.from({ length: 10 }, () => send(served, [request], { milliseconds: 20, half: true })),
    ...Array.from({ length: 10 }, (_, i) => send(served, [request.slice(0, 100 + i * 5)], { milliseconds: 20 })),
  ]);
  await until(() => served.engine.calls.every(({ aborted, ended }) => aborted || ended));
  const dribbled = await send(served, [`${HEAD}Content-Length: ${BODY.length}\r\n\r\n`, ...BODY], {
    milliseconds: 900,
    pause: 20,
  });
  assert.deepEqual(statuses(dribbled), [408]);
  assert.deepEqual(statuses(await send(served, [RIGHT])), [200]);
});

Deno.test("sockets that say nothing keep nobody else from being answered", async () => {
  await using served = await serve();
  const { port } = new URL(served.server.url);
  const silent = await Promise.all(
    Array.from({ length: 200 }, () => Deno.connect({ hostname: "127.0.0.1", port: Number(port) })),
  );
  try {
    assert.deepEqual(statuses(await send(served, [RIGHT])), [200]);
  } finally {
    for (const connection of silent) connection.close();
  }
});
