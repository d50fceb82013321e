// One workgroup a row. Tokens are ordered by logit, the highest first, equal ones by id; every truncation keeps a prefix
// of that order, so a kept set is a threshold: logits above it, and those equal to it up to some id.

@group(0) @binding(0) var<storage, read> logits: array<f32>;
// temperature, top-p, min-p
@group(0) @binding(1) var<storage, read> params: array<vec4f>;
// top-k, seed (two words), position
@group(0) @binding(2) var<storage, read> settings: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> logprobs: array<f32>;

var<workgroup> sums: array<f32, LANES>;
var<workgroup> counts: array<u32, LANES>;

// Results all invocations agree on, so that they may branch on them round barriers.
var<workgroup> shared_sum: f32;
var<workgroup> shared_count: u32;

fn total_of(lane: u32, value: f32) -> f32 {
  workgroupBarrier();
  sums[lane] = value;
  workgroupBarrier();
  if (lane == 0u) {
    var total = 0.0;
    for (var i = 0u; i < LANES; i++) { total += sums[i]; }
    shared_sum = total;
  }
  return workgroupUniformLoad(&shared_sum);
}

fn count_of(lane: u32, value: u32) -> u32 {
  workgroupBarrier();
  counts[lane] = value;
  workgroupBarrier();
  if (lane == 0u) {
    var total = 0u;
    for (var i = 0u; i < LANES; i++) { total += counts[i]; }
    shared_count = total;
  }
  return workgroupUniformLoad(&shared_count);
}

fn least_of(lane: u32, value: u32) -> u32 {
  workgroupBarrier();
  counts[lane] = value;
  workgroupBarrier();
  if (lane == 0u) {
    var least = 0xffffffffu;
    for (var i = 0u; i < LANES; i++) { least = min(least, counts[i]); }
    shared_count = least;
  }
  return workgroupUniformLoad(&shared_count);
}

fn greatest_of(lane: u32, value: u32) -> u32 {
  return ~least_of(lane, ~value);
}

// An u32 that orders as the logit does; -0 counts as 0.
fn key_of(logit: f32) -> u32 {
  let bits = bitcast<u32>(logit + 0.0);
  return select(bits | 0x80000000u, ~bits, (bits & 0x80000000u) != 0u);
}

fn logit_of(key: u32) -> f32 {
  return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}

struct Kept { key: u32, last_id: u32 }

fn is_kept(kept: Kept, key: u32, id: u32) -> bool {
  return key > kept.key || (key == kept.key && id <= kept.last_id);
}

// The id of the n-th token (from 1) whose key is `key`.
fn id_of_tie(lane: u32, base: u32, key: u32, n: u32) -> u32 {
  var low = 0u;
  var high = VOCABULARY - 1u;
  while (low < high) {
    let middle = (low + high) / 2u;
    var count = 0u;
    for (var id = lane; id <= middle; id += LANES) { count += u32(key_of(logits[base + id]) == key); }
    if (count_of(lane, count) >= n) { high = middle; } else { low = middle + 1u; }
  }
  return low;
}

// The first k tokens of the order.
fn keep_top_k(lane: u32, base: u32, k: u32) -> Kept {
  var key = 0u;
  for (var bit = 32u; bit > 0u; bit--) {
    let trial = key | (1u << (bit - 1u));
    var count = 0u;
    for (var id = lane; id < VOCABULARY; id += LANES) { count += u32(key_of(logits[base + id]) >= trial); }
    if (count_of(lane, count) >= k) { key = trial; }
  }
  var above = 0u;
  for (var id = lane; id < VOCABULARY; id += LANES) { above += u32(key_of(logits[base + id]) > key); }
  return Kept(key, id_of_tie(lane, base, key, k - count_of(lane, above)));
}

fn mass_from(lane: u32, base: u32, kept: Kept, highest: f32, scale: f32, key: u32) -> f32 {
  var mass = 0.0;
  for (var id = lane; id < VOCABULARY; id += LANES) {
    let logit = logits[base + id];
    let own = key_of(logit);
    if (own >= key && is_kept(kept, own, id)) { mass += exp((logit - highest) * scale); }
  }
  return total_of(lane, mass);
}

// The shortest prefix of `kept` whose mass reaches `wanted`.
fn keep_nucleus(lane: u32, base: u32, kept: Kept, highest: f32, scale: f32, wanted: f32) -> Kept {
  var key = 0u;
  for (var bit = 32u; bit > 0u; bit--) {
    let trial = key | (1u << (bit - 1u));
    if (mass_from(lane, base, kept, highest, scale, trial) >= wanted) { key = trial; }
  }
  if (key < kept.key) { return kept; }
  let missing = wanted - mass_from(lane, base, kept, highest, scale, key + 1u);
  let each = exp((logit_of(key) - highest) * scale);
  let ties = max(1u, u32(ceil(min(missing / each, f32(VOCABULARY)))));
  var present = 0u;
  for (var id = lane; id < VOCABULARY; id += LANES) {
    let own = key_of(logits[base + id]);
    present += u32(own == key && is_kept(kept, own, id));
  }
  return Kept(key, id_of_tie(lane, base, key, min(ties, count_of(lane, present))));
}

// The first token in order of ids at which the kept mass passes u times the whole.
fn draw(lane: u32, base: u32, kept: Kept, highest: f32, scale: f32, u: f32) -> u32 {
  let width = (VOCABULARY + LANES - 1u) / LANES;
  let first = lane * width;
  let end = min(VOCABULARY, first + width);
  var mass = 0.0;
  var last = 0u;
  for (var id = first; id < end; id++) {
    let logit = logits[base + id];
    if (is_kept(kept, key_of(logit), id)) {
      mass += exp((logit - highest) * scale);
      last = id;
    }
  }
  let aim = u * total_of(lane, mass);
  var before = 0.0;
  for (var i = 0u; i < lane; i++) { before += sums[i]; }
  var found = 0xffffffffu;
  if (before + mass > aim) {
    for (var id = first; id < end; id++) {
      let logit = logits[base + id];
      if (is_kept(kept, key_of(logit), id)) {
        before += exp((logit - highest) * scale);
        if (before > aim) {
          found = id;
          break;
        }
      }
    }
  }
  let chosen = least_of(lane, found);
  // Rounding may leave the aim unreached: the last kept token then.
  return select(chosen, greatest_of(lane, last), chosen == 0xffffffffu);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.x;
  let base = row * STRIDE;
  var own = 0u;
  for (var id = lane; id < VOCABULARY; id += LANES) { own = max(own, key_of(logits[base + id])); }
  let top = greatest_of(lane, own);
  let highest = logit_of(top);
  var mass = 0.0;
  for (var id = lane; id < VOCABULARY; id += LANES) { mass += exp(logits[base + id] - highest); }
  let whole = total_of(lane, mass);
  let temperature = params[row].x;
  var token = 0u;
  if (temperature == 0.0) {
    token = id_of_tie(lane, base, top, 1u);
  } else {
    let scale = 1.0 / temperature;
    var kept = Kept(0u, VOCABULARY);
    let k = settings[row].x;
    if (k > 0u && k < VOCABULARY) { kept = keep_top_k(lane, base, k); }
    if (params[row].y < 1.0) {
      let wanted = params[row].y * mass_from(lane, base, kept, highest, scale, 0u);
      kept = keep_nucleus(lane, base, kept, highest, scale, wanted);
    }
    if (params[row].z > 0.0) {
      let least = key_of(highest + log(params[row].z) * temperature);
      if (least > kept.key) { kept = Kept(least, VOCABULARY); }
    }
    let random = philox(vec4u(settings[row].w, 0u, 0u, 0u), settings[row].yz);
    token = draw(lane, base, kept, highest, scale, f32(random.x >> 8u) * 0x1p-24);
  }
  if (lane == 0u) {
    tokens[row] = token;
    logprobs[row] = logits[base + token] - highest - log(whole);
  }
}
