/** docs/serving.md and the files beside it say what the server does: its flags, settings and metrics by their names. */
import assert from "node:assert/strict";
import { parseAllDocuments } from "yaml";
import { createApp } from "../../serve/app.ts";
import { fields } from "../../serve/settings.ts";
import { mockEngine } from "./mock_engine.ts";
import { bytes } from "./serving.ts";

const FOLDER = "docs/serving";
const text = await Deno.readTextFile("docs/serving.md");
const read = (name: string) => Deno.readTextFile(`${FOLDER}/${name}`);

/** Cells of each row whose first one is code, by that. */
const rows = new Map(
  text.split("\n").flatMap((line) => {
    const cells = line.split("|").slice(1, -1).map((cell) => cell.trim());
    const name = /^`([^`]+)`$/.exec(cells[0] ?? "")?.[1];
    return name === undefined ? [] : [[name, cells.slice(1)] as const];
  }),
);

const words = (name: string, separator: string) => name.replace(/[A-Z]/g, (letter) => separator + letter);

interface Described {
  readonly type: string;
  readonly labels: ReadonlySet<string>;
}

/** The metrics that a server prints, with their types and labels. */
async function metrics(): Promise<ReadonlyMap<string, Described>> {
  const stats = {
    running: 1,
    waiting: 0,
    blocks: 2,
    freeBlocks: 1,
    steps: 1,
    rows: 1,
    reusedTokens: 0,
    preemptions: 0,
  };
  const engine = Object.assign(mockEngine(), { stats: { ...stats, stepSizes: [1] } });
  await using app = await createApp({ model: { name: "mock", engine, tokenizer: bytes } });
  const body = JSON.stringify({ model: "mock", prompt: "A", max_tokens: 3 });
  const headers = { "content-type": "application/json" };
  assert.equal((await app.request("/v1/completions", { method: "POST", headers, body })).status, 200);
  const printed = await (await app.request("/metrics")).text();
  const found = [...printed.matchAll(/^# TYPE (\w+) (\w+)$/gm)].map(([, name, type]) => {
    const samples = printed.matchAll(new RegExp(`^${name}(?:_bucket|_sum|_count)?\\{(.*)\\} `, "gm"));
    const labels = [...samples].flatMap(([, inside]) => [...inside.matchAll(/(\w+)="/g)].map(([, label]) => label));
    return [name, { type, labels: new Set(labels.filter((label) => label !== "le")) }] as const;
  });
  return new Map(found);
}

Deno.test("every flag is in the table, in the words of --help", () => {
  for (const [name, { kind, help, default: value }] of Object.entries(fields)) {
    const flag = `--${kind === "flag" && value ? "no-" : ""}${words(name, "-").toLowerCase()}`;
    const row = rows.get(flag);
    assert.ok(row, `${flag} isn't in docs/serving.md`);
    const [said, usual] = row;
    assert.ok(said.startsWith(help), `${flag}: docs/serving.md says ${said}, --help ${help}`);
    const shown = kind === "flag" || kind === "texts" || value === "" ? "" : `\`${value}\``;
    assert.equal(usual, shown, `the default of ${flag}`);
  }
});

Deno.test("every flag that is named exists", () => {
  const flags = new Set(
    Object.keys(fields).flatMap((name) => {
      const flag = words(name, "-").toLowerCase();
      return [flag, `no-${flag}`];
    }),
  );
  for (const [, flag] of text.matchAll(/`--([a-z][a-z-]+)/g)) {
    const others = ["help", "device", "gpus", "group-add", "stop-timeout"]; // Docker's
    assert.ok(flags.has(flag) || others.includes(flag), `--${flag} is no flag of the server`);
  }
});

Deno.test("every metric is in the table with its type and labels, and no other", async () => {
  const known = await metrics();
  assert.ok(known.size > 10);
  for (const [name, { type, labels }] of known) {
    const row = rows.get(name);
    assert.ok(row, `${name} isn't in docs/serving.md`);
    const named = new Set([...row[1].matchAll(/`(\w+)`/g)].map(([, label]) => label));
    assert.deepEqual([row[0], named], [type, labels], name);
  }
  for (const [name] of text.matchAll(/\bwgpt_\w+/g)) assert.ok(known.has(name), `${name} is no metric`);
});

Deno.test("the dashboard asks for metrics and labels that there are", async () => {
  const known = await metrics();
  const { panels } = JSON.parse(await read("grafana.json")) as { panels: { targets: { expr: string }[] }[] };
  const queries = panels.flatMap(({ targets }) => targets.map(({ expr }) => expr));
  assert.ok(queries.length > 15);
  for (const query of queries) {
    const samples = [...query.matchAll(/\b(wgpt_\w+)\{([^}]*)\}/g)];
    assert.ok(samples.length > 0, query);
    for (const [, sample, selector] of samples) {
      const name = known.has(sample) ? sample : sample.replace(/_(bucket|sum|count)$/, "");
      const metric = known.get(name);
      assert.ok(metric, `${sample} in ${query} is no metric`);
      assert.equal(metric.type === "histogram", name !== sample, `${sample} of a ${metric.type}`);
      for (const [, label] of selector.matchAll(/(\w+)=~?"/g)) {
        assert.ok(["job", "instance"].includes(label) || metric.labels.has(label), `${label} of ${sample}`);
      }
    }
  }
});

Deno.test("files for deployment name settings that there are", async () => {
  const known = new Set(Object.keys(fields).map((name) => `WGPT_${words(name, "_").toUpperCase()}`));
  const files = [...Deno.readDirSync(FOLDER)].map(({ name }) => name);
  for (const file of files) {
    assert.ok(text.includes(`(serving/${file})`) || file.endsWith("ignore"), `docs/serving.md doesn't name ${file}`);
    for (const [name] of (await read(file)).matchAll(/\bWGPT_[A-Z_]+/g)) {
      assert.ok(known.has(name), `${name} in ${file}`);
    }
  }
  for (const [name] of text.matchAll(/\bWGPT_[A-Z_]+\b/g)) assert.ok(known.has(name) || name === "WGPT_CACHE", name);
});

Deno.test("the manifest is YAML whose parts fit together", async () => {
  const documents = parseAllDocuments(await read("kubernetes.yaml"));
  for (const { errors } of documents) assert.deepEqual(errors, []);
  const [deployment, service] = documents.map((document) => document.toJS());
  assert.deepEqual([deployment.kind, service.kind], ["Deployment", "Service"]);
  const { template, selector } = deployment.spec;
  const { containers: [container], volumes, terminationGracePeriodSeconds } = template.spec;
  assert.deepEqual([selector.matchLabels, service.spec.selector], [template.metadata.labels, template.metadata.labels]);
  const named = (entries: readonly { readonly name: string }[]) => entries.map(({ name }) => name).toSorted();
  assert.deepEqual(named(container.volumeMounts), named(volumes));
  const drain = container.env.find(({ name }: { name: string }) => name === "WGPT_DRAIN_SECONDS").value;
  const before = Number(container.lifecycle.preStop.exec.command[1]);
  assert.ok(terminationGracePeriodSeconds > Number(drain) + before);
  const paths = ["startupProbe", "readinessProbe", "livenessProbe"].map((probe) => container[probe].httpGet.path);
  assert.deepEqual(paths, ["/health", "/ready", "/health"]);
});
