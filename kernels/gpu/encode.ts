/** Encodes a program's commands and submits them, segment by segment. It knows no op and keeps nothing. */
import type { Command } from "./assemble.ts";
import type { Device } from "./device.ts";

export interface SubmitOptions {
  /** Timestamps of a dispatch, counted from 0: it then gets a pass of its own. */
  readonly stamp?: (dispatch: number) => GPUComputePassTimestampWrites | undefined;
}

/** Submits all commands in their order. Returns before the GPU is done. */
export function submit(device: Device, commands: readonly Command[], options: SubmitOptions = {}): void {
  for (const _ of segments(device, commands, options));
}

/** Submits one segment at each step, and gives its number. */
export function* segments(
  device: Device,
  commands: readonly Command[],
  { stamp }: SubmitOptions = {},
): Generator<number> {
  let encoder = device.gpu.createCommandEncoder();
  let pass: GPUComputePassEncoder | null = null;
  let segment = 0;
  let dispatched = 0;
  const endPass = () => {
    pass?.end();
    pass = null;
  };
  const cut = () => {
    endPass();
    device.gpu.queue.submit([encoder.finish()]);
    return segment++;
  };
  for (const command of commands) {
    if (command.kind === "cut") {
      yield cut();
      encoder = device.gpu.createCommandEncoder();
    } else if (command.kind === "dispatch") {
      const timestampWrites = stamp?.(dispatched++);
      if (timestampWrites !== undefined) endPass();
      pass ??= encoder.beginComputePass({ timestampWrites });
      pass.setPipeline(command.pipeline);
      pass.setBindGroup(0, command.group);
      pass.dispatchWorkgroups(...command.dispatch.workgroups);
      if (timestampWrites !== undefined) endPass();
    } else {
      endPass();
      encodeCopy(encoder, command);
    }
  }
  yield cut();
}

function encodeCopy(encoder: GPUCommandEncoder, command: Extract<Command, { kind: "copy" | "texture" }>): void {
  if (command.kind === "copy") {
    const { from, to } = command;
    encoder.copyBufferToBuffer(from.buffer, from.offset, to.buffer, to.offset, to.size);
    return;
  }
  const { from, rowBytes, to } = command;
  const source = { buffer: from.buffer, offset: from.offset, bytesPerRow: rowBytes, rowsPerImage: to.height };
  encoder.copyBufferToTexture(source, { texture: to }, [to.width, to.height]);
}
