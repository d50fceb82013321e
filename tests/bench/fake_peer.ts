/** A peer's side of the conversation that measures nothing: `steady` answers 3 ms, `mute` dies, `elsewhere` ran on another adapter. */
const [kind] = Deno.args;
if (kind === "mute") {
  console.error("something went by");
  console.error("Error: no such backend");
  Deno.exit(1);
}
console.log("not for the bench");
console.log(
  JSON.stringify({ ready: { about: "fake 1.0", adapter: kind === "elsewhere" ? "another adapter" : "here" } }),
);
const lines = Deno.stdin.readable.pipeThrough(new TextDecoderStream());
for await (const _ of lines) console.log(JSON.stringify({ ms: 3 }));
