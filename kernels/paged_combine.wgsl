// Joins what the splits of a row's positions made: o = sum(part * 2^(m - top)) / sum(z * 2^(m - top)).
struct Uniforms { rows: u32, splits: u32 }
@group(0) @binding(0) var<storage, read> parts: array<vec4f>;
@group(0) @binding(1) var<storage, read> weights: array<vec2f>;
@group(0) @binding(2) var<storage, read_write> o: array<vec4f>;
@group(0) @binding(3) var<uniform> u: Uniforms;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let index = (group.x + group.y * GRID_WIDTH) * 64u + local;
  let query = index / VECTORS;
  if (query >= u.rows * HEADS) { return; }
  var top = -1e30;
  for (var s = 0u; s < u.splits; s++) { top = max(top, weights[query * u.splits + s].x); }
  var z = 0.0;
  var sum = vec4f();
  for (var s = 0u; s < u.splits; s++) {
    let part = query * u.splits + s;
    let factor = exp2(weights[part].x - top);
    z += weights[part].y * factor;
    sum += parts[part * VECTORS + index % VECTORS] * factor;
  }
  o[index] = sum / z;
}
