// A vec4u a row and head for the backward pass: bits of lse, bits of delta = sum(dy * o), the row's start, 0.
struct Uniforms { rows: u32 }
@group(0) @binding(0) var<storage, read> o: array<vec4f>;
@group(0) @binding(1) var<storage, read> dy: array<vec4f>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read> starts: array<u32>;
@group(0) @binding(4) var<storage, read_write> statistics: array<vec4u>;
@group(0) @binding(5) var<uniform> u: Uniforms;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let index = (group.x + group.y * GRID_WIDTH) * 64u + local;
  if (index >= u.rows * HEADS) { return; }
  var sum = vec4f();
  for (var d = 0u; d < VECTORS; d++) { sum += dy[index * VECTORS + d] * o[index * VECTORS + d]; }
  let delta = sum.x + sum.y + sum.z + sum.w;
  statistics[index] = vec4u(bitcast<u32>(lse[index]), bitcast<u32>(delta), starts[index / HEADS], 0u);
}
