// One workgroup a row: the COUNT most likely tokens, best first, equal ones by id, with their log-probabilities, and the
// log-probability of one given token.

@group(0) @binding(0) var<storage, read> logits: array<f32>;
@group(0) @binding(1) var<storage, read> targets: array<u32>;
@group(0) @binding(2) var<storage, read_write> given: array<f32>;
@group(0) @binding(3) var<storage, read_write> ids: array<u32>;
@group(0) @binding(4) var<storage, read_write> logprobs: array<f32>;

var<workgroup> values: array<f32, LANES>;
var<workgroup> owners: array<u32, LANES>;

const NONE = 0xffffffffu;

fn precedes(value: f32, id: u32, other: f32, other_id: u32) -> bool {
  return value > other || (value == other && id < other_id);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  let base = row * STRIDE;
  var last = 0.0;
  var last_id = NONE;
  var highest = 0.0;
  var normalizer = 0.0;
  for (var rank = 0u; rank < COUNT; rank++) {
    var best = 0.0;
    var best_id = NONE;
    for (var id = lane; id < VOCABULARY; id += LANES) {
      let value = logits[base + id];
      let follows = rank == 0u || precedes(last, last_id, value, id);
      if (follows && (best_id == NONE || value > best)) {
        best = value;
        best_id = id;
      }
    }
    workgroupBarrier();
    values[lane] = best;
    owners[lane] = best_id;
    workgroupBarrier();
    best_id = NONE;
    for (var i = 0u; i < LANES; i++) {
      if (owners[i] != NONE && (best_id == NONE || precedes(values[i], owners[i], best, best_id))) {
        best = values[i];
        best_id = owners[i];
      }
    }
    last = best;
    last_id = best_id;
    if (rank == 0u) {
      highest = best;
      var mass = 0.0;
      for (var id = lane; id < VOCABULARY; id += LANES) { mass += exp(logits[base + id] - highest); }
      workgroupBarrier();
      values[lane] = mass;
      workgroupBarrier();
      for (var i = 0u; i < LANES; i++) { normalizer += values[i]; }
      normalizer = log(normalizer);
    }
    if (lane == 0u) {
      ids[row * COUNT + rank] = last_id;
      logprobs[row * COUNT + rank] = last - highest - normalizer;
    }
  }
  if (lane == 0u) { given[row] = logits[base + min(targets[row], VOCABULARY - 1u)] - highest - normalizer; }
}
