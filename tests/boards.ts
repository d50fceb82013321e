/** Machines with several boards of one model, made of Mesa's CPU driver and a C compiler where both are there. */
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const SOURCE = fileURLToPath(new URL("./fixtures/board.c", import.meta.url));
const MANIFESTS = "/usr/share/vulkan/icd.d";

interface Machine extends Disposable {
  /** Shows a child process these boards and no other. */
  readonly env: Readonly<Record<string, string>>;
}

/** The library that lavapipe's manifest names. */
function lavapipe(): string | undefined {
  try {
    const manifest = [...Deno.readDirSync(MANIFESTS)].find(({ name }) => name.startsWith("lvp_icd"))!.name;
    return JSON.parse(Deno.readTextFileSync(join(MANIFESTS, manifest))).ICD.library_path;
  } catch {
    return undefined;
  }
}

function compiles(...args: string[]): boolean {
  try {
    return new Deno.Command("cc", { args, stdout: "null", stderr: "null" }).outputSync().success;
  } catch {
    return false;
  }
}

const driver = Deno.build.os === "linux" && compiles("--version") ? lavapipe() : undefined;

/** Boards numbered from 1, each a discrete GPU at PCI address 0000:0N:00.0. */
function makeMachine(boards: number): Machine {
  const folder = Deno.makeTempDirSync();
  const manifests = Array.from({ length: boards }, (_, i) => {
    const library = join(folder, `board${i + 1}.so`);
    const defines = [`-DBOARD=${i + 1}`, `-DDRIVER=${JSON.stringify(driver)}`];
    if (!compiles("-shared", "-fPIC", "-Wall", "-Werror", ...defines, "-o", library, SOURCE, "-ldl")) {
      throw new Error(`Cannot compile ${SOURCE}`);
    }
    const manifest = join(folder, `board${i + 1}.json`);
    const ICD = { library_path: library, api_version: "1.3.0" };
    Deno.writeTextFileSync(manifest, JSON.stringify({ file_format_version: "1.0.0", ICD }));
    return manifest;
  });
  return {
    env: { VK_DRIVER_FILES: manifests.join(":") },
    [Symbol.dispose]: () => Deno.removeSync(folder, { recursive: true }),
  };
}

/** A test on a machine with that many boards of one model; ignored, and says so, where it can't be made. */
export function testWithBoards(boards: number, name: string, test: (env: Machine["env"]) => Promise<void>): void {
  Deno.test({
    name: driver === undefined ? `${name} (ignored: needs cc and mesa-vulkan-drivers)` : name,
    ignore: driver === undefined,
    async fn() {
      using machine = makeMachine(boards);
      await test(machine.env);
    },
  });
}
