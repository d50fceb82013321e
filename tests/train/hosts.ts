/** Two hosts on one machine: network namespaces with a cable between them, each with a host name of its own. */
import { join } from "node:path";

const NETWORK = "10.77.0";

export interface Hosts extends AsyncDisposable {
  readonly addresses: readonly string[];
  readonly network: string;
  /** A program that runs a command on a host: `agent ADDRESS COMMAND…`. */
  readonly agent: string;
}

async function run(command: string, ...args: string[]): Promise<boolean> {
  try {
    return (await new Deno.Command(command, { args, stdout: "null", stderr: "null" }).output()).success;
  } catch {
    return false;
  }
}

const namespace = (address: string) => `wgpt-${Deno.pid}-${address}`;

/** Whether this user may make network namespaces here. */
export async function canMakeHosts(): Promise<boolean> {
  const name = namespace("probe");
  const made = await run("ip", "netns", "add", name) && await run("unshare", "--uts", "true");
  await run("ip", "netns", "del", name);
  return made;
}

export async function makeHosts(): Promise<Hosts> {
  const addresses = [1, 2].map((host) => `${NETWORK}.${host}`);
  const [one, two] = addresses.map(namespace);
  const folder = await Deno.makeTempDir();
  const agent = join(folder, "agent");
  await Deno.writeTextFile(
    agent,
    `#!/bin/sh
host=$1; shift
exec ip netns exec "wgpt-${Deno.pid}-$host" unshare --uts sh -c "hostname host-$host; $*"
`,
    { mode: 0o700 },
  );
  for (const name of [one, two]) await run("ip", "netns", "add", name);
  await run("ip", "link", "add", "wgpt1", "netns", one, "type", "veth", "peer", "name", "wgpt2", "netns", two);
  for (const [i, name] of [one, two].entries()) {
    await run("ip", "-n", name, "addr", "add", `${addresses[i]}/24`, "dev", `wgpt${i + 1}`);
    for (const device of [`wgpt${i + 1}`, "lo"]) await run("ip", "-n", name, "link", "set", device, "up");
  }
  return {
    addresses,
    network: `${NETWORK}.0/24`,
    agent,
    async [Symbol.asyncDispose]() {
      for (const name of [one, two]) await run("ip", "netns", "del", name);
      await Deno.remove(folder, { recursive: true });
    },
  };
}
