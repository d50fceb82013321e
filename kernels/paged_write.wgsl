// Copies row n of x into row slots[n] of the cache; a slot outside of the cache writes nothing.
struct Uniforms { vectors: u32, slots: u32 }
@group(0) @binding(0) var<storage, read_write> cache: array<vec4f>;
@group(0) @binding(1) var<storage, read> x: array<vec4f>;
@group(0) @binding(2) var<storage, read> slots: array<u32>;
@group(0) @binding(3) var<uniform> u: Uniforms;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let index = (group.x + group.y * GRID_WIDTH) * 64u + local;
  if (index >= u.vectors) { return; }
  let row = index / ROW_VECTORS;
  let slot = slots[row];
  if (slot < u.slots) { cache[slot * ROW_VECTORS + index % ROW_VECTORS] = x[SOURCE]; }
}
