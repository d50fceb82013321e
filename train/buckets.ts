/**
 * Gradients by buckets: flat pieces that become whole one after another as the backward pass goes on, so that each can leave
 * the GPU while the next is computed (Li et al. 2020, "PyTorch Distributed"). Pure; it knows no device.
 */
import { type Call, isLeaf, type Tensor } from "../kernels/gpu/graph.ts";
import type { Layout, Span } from "../kernels/gpu/layout.ts";
import type { GradientGraph } from "./graphs.ts";

/** Bytes of a bucket at most: two are in flight in a rank's memory, and short ones cost waits. */
export const BUCKET_BYTES = 8 << 20;

/** Part of the gradients' memory. */
export interface Bucket extends Span {
  /** The value whose making makes the bucket whole. */
  readonly complete: Tensor;
}

interface Piece extends Span {
  readonly complete: Tensor;
  /** When it is whole: place of the call that makes its last value. */
  readonly position: number;
}

/** All gradients, in the order in which they become whole; the same on every rank that trains the same model. */
export function bucketsOf(
  layout: Layout,
  { graph, gradients }: Pick<GradientGraph, "graph" | "gradients">,
  bucketBytes = BUCKET_BYTES,
): Bucket[] {
  const position = new Map(graph.calls.map((call, index): [Call, number] => [call, index]));
  const pieces = gradients.flatMap(({ variable, value }): Piece[] => {
    const { buffer, offset, size } = layout.get(variable)!;
    const { source } = value.base;
    const piece = { complete: value.base, position: isLeaf(source) ? 0 : position.get(source)! };
    return Array.from({ length: Math.ceil(size / bucketBytes) }, (_, i) => {
      const from = i * bucketBytes;
      return { ...piece, buffer, offset: offset + from, elements: Math.min(bucketBytes, size - from) / 4 };
    });
  });
  // Back to front, as the backward pass goes.
  pieces.sort((a, b) => a.buffer - b.buffer || b.offset - a.offset);
  const merged: Piece[] = [];
  for (const piece of pieces) {
    const last = merged.at(-1);
    const together = last?.buffer === piece.buffer ? last.offset + 4 * last.elements - piece.offset : Infinity;
    if (together > bucketBytes) merged.push(piece);
    else merged[merged.length - 1] = { ...later(last!, piece), offset: piece.offset, elements: together / 4 };
  }
  return merged.sort((a, b) => a.position - b.position);
}

function later(a: Piece, b: Piece): Piece {
  return a.position > b.position ? a : b;
}
