/** jax-js, by WebGPU or WebAssembly: matrix products and training steps. */
import { blockUntilReady, defaultDevice, init, jit, numpy as np } from "@jax-js/jax";
import { timeMany } from "../harness.ts";
import { checkProduct, operand, type Product, type StepWork } from "../work.ts";
import { adapterName, answer } from "./answer.ts";
import { openJaxStep } from "./jax_step.ts";

const work: Product | StepWork = JSON.parse(Deno.args[0]);
const device = Deno.args[1] as "webgpu" | "wasm";
const started = await init(device);
if (!started.includes(device)) throw new Error(`its ${device} backend didn't start`);
defaultDevice(device);

async function openProduct({ m, k, n }: Product): Promise<() => Promise<number>> {
  const [valuesA, valuesB] = [operand(m * k, 1), operand(k * n, 2)];
  const a = np.array(valuesA).reshape([m, k]);
  const b = np.array(valuesB).reshape([k, n]);
  const product = jit((a: np.Array, b: np.Array) => np.matmul(a, b));
  const first = await product(a.ref, b.ref).data();
  checkProduct({ m, k, n, form: "nn" }, valuesA, valuesB, first as Float32Array);
  return timeMany(async (times) => {
    const products = Array.from({ length: times }, () => product(a.ref, b.ref));
    await blockUntilReady(products);
    products.forEach((product) => product.dispose());
  });
}

const run = "layers" in work ? await openJaxStep(work) : await openProduct(work);
await answer("@jax-js/jax", run, device === "webgpu" ? await adapterName() : undefined);
