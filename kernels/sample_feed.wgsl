// Keeps a chosen token in its row of a ring, and makes it the next step's input. One invocation.

@group(0) @binding(0) var<storage, read_write> next_token: array<u32>;
@group(0) @binding(1) var<storage, read_write> position: array<u32>;
// top-k, seed (two words), draws made
@group(0) @binding(2) var<storage, read_write> settings: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> ring: array<u32>;
@group(0) @binding(4) var<storage, read> token: array<u32>;
// Bits of an f32.
@group(0) @binding(5) var<storage, read> logprob: array<u32>;
BEST

@compute @workgroup_size(1)
fn main() {
  let row = settings[0].w % ROWS * WIDTH;
  ring[row] = token[0];
  ring[row + 1u] = logprob[0];
  COPY_BEST
  next_token[0] = token[0];
  position[0] += 1u;
  settings[0].w += 1u;
}
