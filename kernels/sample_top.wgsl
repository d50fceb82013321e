// The COUNT most likely tokens of a row, best first, equal ones by id, with their log-probabilities, and the
// log-probability of one given token. A workgroup a row, after sample_rows.wgsl.

struct Uniforms { first: u32, rows: u32 }
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> given: array<f32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> logprobs: array<f32>;
@group(0) @binding(5) var<uniform> u: Uniforms;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.x + group.y * GRID_WIDTH;
  if (row >= u.rows) { return; }
  let top = first_in(lane, row);
  let normalizer = normalizer_of(lane, row, top.key);
  if (lane == 0u) {
    let asked = targets[u.first + row];
    let key = select(BROKEN, keys_of(quad_at(row, min(asked, VOCABULARY - 1u) / 4u))[asked % 4u], asked < VOCABULARY);
    given[u.first + row] = logprob_of(key, select(top.key, BROKEN, key == BROKEN), normalizer);
  }
  var entry = top;
  for (var rank = 0u; rank < COUNT; rank++) {
    if (lane == 0u) {
      ids[(u.first + row) * COUNT + rank] = min(entry.id, VOCABULARY - 1u);
      logprobs[(u.first + row) * COUNT + rank] = logprob_of(entry.key, top.key, normalizer);
    }
    if (rank + 1u < COUNT) { entry = first_from(lane, row, entry.key, entry.id + 1u); }
  }
}
