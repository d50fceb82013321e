// C in tiles of 64 x 64 through workgroup memory; each of 16 x 16 invocations holds 4 x 4 sums. The usual kernel for GPUs.
// Any sizes: what lies past an edge is loaded as 0 and not stored.
const TILE = 64u;
const DEPTH = 16u;
const THREADS = 16u;
// One more than the tile, so that invocations storing along the inner dimension hit different banks.
const PITCH = TILE + 1u;

var<workgroup> tile_a: array<f32, DEPTH * PITCH>;
var<workgroup> tile_b: array<f32, DEPTH * PITCH>;

fn element_a(row: u32, k: u32) -> f32 {
  if (row >= sizes.m || k >= sizes.k) { return 0.0; }
  return a_at(select(row * sizes.a_stride + k, k * sizes.a_stride + row, TRANSPOSE_A) + sizes.a_column);
}

fn element_b(k: u32, column: u32) -> f32 {
  if (k >= sizes.k || column >= sizes.n) { return 0.0; }
  return b_at(select(k * sizes.b_stride + column, column * sizes.b_stride + k, TRANSPOSE_B) + sizes.b_column);
}

@compute @workgroup_size(16, 16)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_id) local: vec3u,
        @builtin(local_invocation_index) lane: u32) {
  let first_row = group.y * TILE;
  let first_column = group.x * TILE;
  var c0 = vec4f();
  var c1 = vec4f();
  var c2 = vec4f();
  var c3 = vec4f();
  for (var first_k = 0u; first_k < sizes.k; first_k += DEPTH) {
    for (var i = lane; i < TILE * DEPTH; i += THREADS * THREADS) {
      // Neighbouring invocations load neighbouring addresses.
      let by_k = vec2u(i / DEPTH, i % DEPTH);
      let by_row = vec2u(i % TILE, i / TILE);
      let place_a = select(by_k, by_row, TRANSPOSE_A);
      let place_b = select(by_row, by_k, TRANSPOSE_B);
      tile_a[place_a.y * PITCH + place_a.x] = element_a(first_row + place_a.x, first_k + place_a.y);
      tile_b[place_b.y * PITCH + place_b.x] = element_b(first_k + place_b.y, first_column + place_b.x);
    }
    workgroupBarrier();
    for (var k = 0u; k < DEPTH; k++) {
      let at_a = k * PITCH + local.y * 4u;
      let at_b = k * PITCH + local.x;
      let column = vec4f(tile_b[at_b], tile_b[at_b + 16u], tile_b[at_b + 32u], tile_b[at_b + 48u]);
      c0 = fma(vec4f(tile_a[at_a]), column, c0);
      c1 = fma(vec4f(tile_a[at_a + 1u]), column, c1);
      c2 = fma(vec4f(tile_a[at_a + 2u]), column, c2);
      c3 = fma(vec4f(tile_a[at_a + 3u]), column, c3);
    }
    workgroupBarrier();
  }
  let row = first_row + local.y * 4u;
  let column = first_column + local.x;
  store_row(row, column, c0);
  store_row(row + 1u, column, c1);
  store_row(row + 2u, column, c2);
  store_row(row + 3u, column, c3);
}

fn store_row(row: u32, column: u32, values: vec4f) {
  if (row >= sizes.m) { return; }
  if (column < sizes.n) { store(row, column, values.x); }
  if (column + 16u < sizes.n) { store(row, column + 16u, values.y); }
  if (column + 32u < sizes.n) { store(row, column + 32u, values.z); }
  if (column + 48u < sizes.n) { store(row, column + 48u, values.w); }
}
