// Paged attention as plainly as WGSL can say it: one invocation a row and head.
struct Uniforms { rows: u32, blocks: u32 }
@group(0) @binding(0) var<storage, read> q: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4f>;
@group(0) @binding(2) var<storage, read> values: array<vec4f>;
@group(0) @binding(3) var<storage, read> block_table: array<u32>;
@group(0) @binding(4) var<storage, read> sequences: array<u32>;
@group(0) @binding(5) var<storage, read> positions: array<u32>;
@group(0) @binding(6) var<storage, read_write> o: array<vec4f>;
@group(0) @binding(7) var<uniform> u: Uniforms;

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) local: u32) {
  let index = (group.x + group.y * GRID_WIDTH) * 32u + local;
  let row = index / HEADS;
  if (row >= u.rows) { return; }
  let key_head = index % HEADS / GROUP;
  let table = sequences[row] * u.blocks;
  var total: array<vec4f, VECTORS>;
  var top = -1e30;
  var z = 0.0;
  for (var position = 0u; position <= min(positions[row], u.blocks * BLOCK - 1u); position++) {
    let slot = block_table[table + position / BLOCK] * BLOCK + position % BLOCK;
    let at = (slot * KEY_HEADS + key_head) * VECTORS;
    var product = vec4f();
    for (var d = 0u; d < VECTORS; d++) { product += q[QUERY] * keys[at + d]; }
    let score = (product.x + product.y + product.z + product.w) * SCALE_LOG2;
    let next = max(top, score);
    let shrink = exp2(top - next);
    let weight = exp2(score - next);
    top = next;
    z = z * shrink + weight;
    for (var d = 0u; d < VECTORS; d++) { total[d] = total[d] * shrink + weight * values[at + d]; }
  }
  for (var d = 0u; d < VECTORS; d++) { o[index * VECTORS + d] = total[d] / z; }
}
