/** ONNX Runtime Web with its WebGPU provider: matrix products, from a model written here. */
import * as ort from "onnxruntime-web/webgpu";
import { timeMany } from "../harness.ts";
import { checkProduct, operand, type Product } from "../work.ts";
import { adapterName, answer } from "./answer.ts";
import { matmulModel } from "./onnx_model.ts";

const work: Product = JSON.parse(Deno.args[0]);
const { m, k, n } = work;
ort.env.wasm.numThreads = 1; // its threads are browser Workers; the product runs on the adapter anyway
const session = await ort.InferenceSession.create(matmulModel(m, k, n), {
  executionProviders: ["webgpu"],
  preferredOutputLocation: "gpu-buffer",
});
const [valuesA, valuesB] = [operand(m * k, 1), operand(k * n, 2)];
const a = new ort.Tensor("float32", valuesA, [m, k]);
const b = new ort.Tensor("float32", valuesB, [k, n]);

async function multiply(times: number): Promise<Float32Array> {
  const products: ort.Tensor[] = [];
  for (let time = 0; time < times; time++) products.push((await session.run({ a, b })).c);
  const last = await products[times - 1].getData() as Float32Array;
  products.forEach((product) => product.dispose());
  return last;
}

checkProduct(work, valuesA, valuesB, await multiply(1));
await answer("onnxruntime-web", timeMany(async (times) => void await multiply(times)), await adapterName());
