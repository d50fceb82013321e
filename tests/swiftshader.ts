/** SwiftShader, a second CPU driver beside Mesa's, where a package has brought it: tests of several adapters need two. */

const MANIFESTS = ["/usr/lib/chromium/vk_swiftshader_icd.json", "/opt/google/chrome/vk_swiftshader_icd.json"];

function isThere(path: string): boolean {
  try {
    return Deno.statSync(path).isFile;
  } catch {
    return false;
  }
}

const manifest = MANIFESTS.find(isThere);

/** Shows a child process SwiftShader besides the drivers that are installed; undefined where there is no SwiftShader. */
export const withSwiftShader: Readonly<Record<string, string>> | undefined = manifest === undefined
  ? undefined
  : { VK_ADD_DRIVER_FILES: manifest };

/** A test that needs SwiftShader; where there is none it is ignored and says so. */
export function testWithSwiftShader(
  name: string,
  test: (env: Readonly<Record<string, string>>) => Promise<void>,
): void {
  const ignored = `${name} (ignored: no SwiftShader here; sudo apt-get install chromium-common)`;
  Deno.test({
    name: withSwiftShader === undefined ? ignored : name,
    ignore: withSwiftShader === undefined,
    fn: () => test(withSwiftShader!),
  });
}
