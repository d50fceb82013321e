/** Runs a small graph once and reads what it gives. It knows no op. */
import { type Call, type Capabilities, Graph, type Tensor } from "../../kernels/gpu/graph.ts";
import { compile } from "../../kernels/gpu/program.ts";
import { createStore } from "../../kernels/gpu/store.ts";
import { testDevice } from "../harness.ts";

export interface RunOptions {
  /** Which of each op's candidates; the last one where there are fewer. */
  readonly choice?: number;
  /** What the ops are told of the adapter instead of the truth. */
  readonly change?: (device: Capabilities) => Capabilities;
}

/** Names and sizes of the inputs are the graph's; values are given by the same names. */
export async function runGraph(
  build: (graph: Graph) => Readonly<Record<string, Tensor>>,
  data: Readonly<Record<string, ArrayBufferView>>,
  { choice = 0, change }: RunOptions = {},
): Promise<Record<string, ArrayBuffer>> {
  const device = await testDevice();
  const graph = new Graph();
  const outputs = build(graph);
  if (change !== undefined) graph.calls.forEach((call) => alter(call, change));
  using store = createStore(device);
  using program = await compile(device, graph, outputs, store, {
    choose: (_, offered) => Math.min(choice, offered.length - 1),
  });
  program.run(data);
  const names = Object.keys(outputs);
  const buffers = await program.read(...names);
  return Object.fromEntries(names.map((name, i) => [name, buffers[i]]));
}

function alter(call: Call, change: (device: Capabilities) => Capabilities): void {
  const { op } = call;
  Object.assign(call, {
    op: { ...op, kernels: (made: Call, device: Capabilities) => op.kernels(made, change(device)) },
  });
}

/** An adapter that binds at most so many bytes, and makes textures of `texels` squared. */
export function bindingLimit(bytes: number, texels = 8192): (device: Capabilities) => Capabilities {
  return (device) => {
    const limits: Capabilities["limits"] = {
      maxStorageBufferBindingSize: bytes,
      maxBufferSize: 2 ** 31,
      minStorageBufferOffsetAlignment: 256,
      minUniformBufferOffsetAlignment: 256,
      maxComputeWorkgroupStorageSize: 16384,
      maxComputeInvocationsPerWorkgroup: 256,
      maxComputeWorkgroupSizeX: 256,
      maxComputeWorkgroupsPerDimension: 65535,
      maxStorageBuffersPerShaderStage: 8,
      maxTextureDimension2D: texels,
    };
    return { ...device, limits };
  };
}
