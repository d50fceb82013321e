/**
 * Finds out whether subgroups can be trusted: of one fixed size, in the order of the workgroup's invocations, and with
 * shuffles that give right numbers. It knows no op.
 */

export interface SubgroupSupport {
  /** Lanes, or 0 where subgroups must not be used. */
  readonly size: number;
  /** What a shader that uses them must open with: Deno rejects the directive that the specification asks for. */
  readonly directive: string;
}

const NONE: SubgroupSupport = { size: 0, directive: "" };

/** Each lane writes its lane number, the subgroup's size and the sum of its group's numbers by shuffles. */
const SHADER = `
@group(0) @binding(0) var<storage, read_write> result: array<vec4u>;
@compute @workgroup_size(LANES)
fn main(@builtin(local_invocation_index) index: u32, @builtin(subgroup_size) size: u32,
        @builtin(subgroup_invocation_id) lane: u32) {
  var sum = index + 1u;
  for (var step = 1u; step < SIZEu; step = step * 2u) { sum = sum + subgroupShuffleXor(sum, step); }
  result[index] = vec4u(lane, size, sum, subgroupShuffle(index, 3u));
}`;

/** Runs a small shader that tells, with and without the directive; a device where neither is right has none. */
export async function probeSubgroups(device: GPUDevice, info: GPUAdapterInfo): Promise<SubgroupSupport> {
  const size = info.subgroupMinSize;
  if (!(size >= 4) || size !== info.subgroupMaxSize) return NONE;
  for (const directive of ["", "enable subgroups;\n"]) {
    const lanes = await run(
      device,
      directive + SHADER.replace("LANES", `${size * 2}`).replace("SIZE", `${size}`),
      size,
    );
    if (lanes !== null) return isRight(lanes, size) ? { size, directive } : NONE;
  }
  return NONE;
}

async function run(device: GPUDevice, code: string, size: number): Promise<Uint32Array | null> {
  device.pushErrorScope("validation");
  const pipeline = device.createComputePipeline({
    layout: "auto",
    compute: { module: device.createShaderModule({ code }), entryPoint: "main" },
  });
  if (await device.popErrorScope() !== null) return null;
  const bytes = size * 2 * 16;
  const result = device.createBuffer({ size: bytes, usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC });
  const staging = device.createBuffer({ size: bytes, usage: GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST });
  const group = device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0),
    entries: [{ binding: 0, resource: { buffer: result } }],
  });
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, group);
  pass.dispatchWorkgroups(1);
  pass.end();
  encoder.copyBufferToBuffer(result, 0, staging, 0, bytes);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  const values = new Uint32Array(staging.getMappedRange().slice(0));
  result.destroy();
  staging.destroy();
  return values;
}

function isRight(values: Uint32Array, size: number): boolean {
  for (let index = 0; index < size * 2; index++) {
    const first = Math.floor(index / size) * size;
    const sum = size * first + size * (size + 1) / 2;
    const expected = [index - first, size, sum, first + 3];
    if (expected.some((value, part) => values[index * 4 + part] !== value)) return false;
  }
  return true;
}
