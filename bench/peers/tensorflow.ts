/** TensorFlow.js with its WebGPU backend: matrix products. */
import * as tf from "@tensorflow/tfjs-core";
import "@tensorflow/tfjs-backend-webgpu";
import { timeMany } from "../harness.ts";
import { checkProduct, operand, type Product } from "../work.ts";
import { adapterName, answer } from "./answer.ts";

const work: Product = JSON.parse(Deno.args[0]);
const { m, k, n } = work;
if (!await tf.setBackend("webgpu")) throw new Error("its WebGPU backend didn't start");
const [valuesA, valuesB] = [operand(m * k, 1), operand(k * n, 2)];
const a = tf.tensor2d(valuesA, [m, k]);
const b = tf.tensor2d(valuesB, [k, n]);

async function multiply(times: number): Promise<ArrayLike<number>> {
  const products = Array.from({ length: times }, () => tf.matMul(a, b));
  const last = await products[times - 1].data();
  products.forEach((product) => product.dispose());
  return last;
}

checkProduct(work, valuesA, valuesB, await multiply(1));
await answer(
  "@tensorflow/tfjs-backend-webgpu",
  timeMany(async (times) => void await multiply(times)),
  await adapterName(),
);
