/**
 * Runs `deno test` with the suite's permissions, passes its output through and closes with `N passed, N failed`. Arguments
 * go to deno test: files, --filter.
 */

/** What tests need: temporary folders, the environment that picks a Vulkan driver, children, loopback, native oracles. */
const PERMISSIONS = [
  "--allow-read",
  "--allow-write",
  "--allow-env",
  "--allow-net=127.0.0.1,localhost",
  "--allow-run",
  "--allow-sys",
  "--allow-ffi",
  "--no-prompt",
];

/** Empty, so that nothing a developer tuned changes what the tests compute. */
const cache = await Deno.makeTempDir();

const child = new Deno.Command(Deno.execPath(), {
  args: ["test", "--doc", ...PERMISSIONS, ...Deno.args],
  stdout: "piped",
  stderr: "inherit",
  env: { NO_COLOR: "1", WGPT_CACHE: cache },
}).spawn();

const counts = { passed: 0, failed: 0 };
let line = "";
for await (const text of child.stdout.pipeThrough(new TextDecoderStream())) {
  await Deno.stdout.write(new TextEncoder().encode(text));
  const lines = (line + text).split("\n");
  line = lines.pop()!;
  for (const full of lines) {
    const summary = full.match(/\| (\d+) passed.*? \| (\d+) failed/);
    if (summary !== null) Object.assign(counts, { passed: Number(summary[1]), failed: Number(summary[2]) });
  }
}
const { code } = await child.status;
await Deno.remove(cache, { recursive: true });
// A run that died before its summary has failed, whatever it printed.
if (code !== 0 && counts.failed === 0) counts.failed = 1;
console.log(`${counts.passed} passed, ${counts.failed} failed`);
Deno.exit(code);
