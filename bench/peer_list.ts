/** Who else does the standard work, and how each is started: JavaScript libraries and PyTorch, in their own processes. */
import { openChild } from "./child.ts";
import type { Peer } from "./harness.ts";
import type { Product, StepWork } from "./work.ts";

const PEERS = new URL("./peers/", import.meta.url);
const path = (name: string) => decodeURIComponent(new URL(name, PEERS).pathname);

/** Debian installs torch for the system's own Python, which may not be the first on the path. */
const PYTHONS = ["/usr/bin/python3", "python3"];

type Work = Product | StepWork;

function library(name: string, script: string, work: Work, adapter: string | undefined, ...more: string[]): Peer {
  const config = ["--config", path("deno.json"), "--frozen"];
  const args = ["run", "--allow-all", "--no-prompt", ...config, path(script), JSON.stringify(work), ...more];
  return { name, open: () => openChild({ name, command: Deno.execPath(), args, adapter }) };
}

export function jaxWebgpu(work: Work, adapter: string): Peer {
  return library("jax-js WebGPU", "jax.ts", work, adapter, "webgpu");
}

export function jaxWasm(work: Work): Peer {
  return library("jax-js WebAssembly", "jax.ts", work, undefined, "wasm");
}

export function tensorflow(work: Product, adapter: string): Peer {
  return library("tfjs WebGPU", "tensorflow.ts", work, adapter);
}

export function onnx(work: Product, adapter: string): Peer {
  return library("onnxruntime-web WebGPU", "onnx.ts", work, adapter);
}

/** PyTorch where a Python has it, else nobody. */
export async function torch(work: Work): Promise<readonly Peer[]> {
  const name = "PyTorch";
  for (const command of PYTHONS) {
    if (!await imports(command)) continue;
    return [{ name, open: () => openChild({ name, command, args: [path("torch_peer.py"), JSON.stringify(work)] }) }];
  }
  return [];
}

async function imports(command: string): Promise<boolean> {
  try {
    const process = new Deno.Command(command, { args: ["-c", "import torch"], stdout: "null", stderr: "null" });
    return (await process.output()).success;
  } catch {
    return false;
  }
}
