// Chooses one token a row, a workgroup each, after sample_rows.wgsl. Tokens are ordered by logit, the highest first, equal
// ones by id; every truncation keeps a prefix of that order.

struct Uniforms { first: u32, rows: u32 }
// temperature, top-p, min-p
@group(0) @binding(1) var<storage, read> params: array<vec4f>;
// top-k, seed (two words), position
@group(0) @binding(2) var<storage, read> settings: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> tokens: array<u32>;
@group(0) @binding(4) var<storage, read_write> logprobs: array<f32>;
@group(0) @binding(5) var<uniform> u: Uniforms;

// Quads of a lane where lanes take neighbours.
const CHUNK = (QUADS + LANES - 1u) / LANES;

// Tokens of keys low to high; those of key low only up to an id.
struct Range { low: u32, last_id: u32, high: u32 }

// What a token weighs: exp((logit - highest) * scale), or 1 where scale is 0.
struct Weighing { top: u32, scale: f32 }

struct Quad { keys: vec4u, weights: vec4f }

fn weigh(row: u32, quad: u32, range: Range, by: Weighing) -> Quad {
  let logits = quad_at(row, quad);
  let keys = keys_at(quad, logits);
  var weights = vec4f(1.0);
  if (by.scale != 0.0) {
    weights = select(exp((logits - logit_of(by.top)) * by.scale), weights, keys == vec4u(by.top));
  }
  let low = vec4u(range.low);
  let inside = (keys > low) | ((keys == low) & (ids_of(quad) <= vec4u(range.last_id)));
  return Quad(keys, select(vec4f(), weights, inside & (keys <= vec4u(range.high)) & (keys != vec4u())));
}

fn weight_of(key: u32, by: Weighing) -> f32 {
  if (by.scale == 0.0 || key == by.top) { return 1.0; }
  return exp((logit_of(key) - logit_of(by.top)) * by.scale);
}

fn weight_in(lane: u32, row: u32, range: Range, by: Weighing) -> f32 {
  var sum = vec4f();
  for (var quad = lane; quad < QUADS; quad += LANES) { sum += weigh(row, quad, range, by).weights; }
  return dot(total_of(lane, sum), vec4f(1.0));
}

// The first token by id, within the range, at which the weight so far passes share * all + more; NONE if none does.
fn token_at(lane: u32, row: u32, range: Range, by: Weighing, share: f32, more: f32) -> u32 {
  let begin = lane * CHUNK;
  let end = min(QUADS, begin + CHUNK);
  var own = 0.0;
  for (var quad = begin; quad < end; quad++) { own += dot(weigh(row, quad, range, by).weights, vec4f(1.0)); }
  words[lane] = vec4u(bitcast<u32>(own), 0u, 0u, 0u);
  workgroupBarrier();
  if (lane == 0u) {
    var sum = 0.0;
    for (var i = 0u; i < LANES; i++) {
      let next = sum + bitcast<f32>(words[i].x);
      words[i] = vec4u(bitcast<u32>(sum), bitcast<u32>(next), 0u, 0u);
      sum = next;
    }
    agreed = vec4u(bitcast<u32>(sum), NONE, 0u, 0u);
  }
  let all = bitcast<f32>(workgroupUniformLoad(&agreed).x);
  let aim = share * all + more;
  let before = bitcast<f32>(words[lane].x);
  // True in one lane at most: sums that neighbours compare are the same bits.
  if (before <= aim && aim < bitcast<f32>(words[lane].y)) {
    var sum = before;
    var found = NONE;
    for (var quad = begin; quad < end && sum <= aim; quad++) {
      let weights = weigh(row, quad, range, by).weights;
      for (var part = 0u; part < 4u && sum <= aim; part++) {
        sum += weights[part];
        if (weights[part] > 0.0) { found = 4u * quad + part; }
      }
    }
    agreed.y = found;
  }
  return workgroupUniformLoad(&agreed).y;
}

// The shortest prefix of the range whose weight reaches `wanted`: two bits of its last key a pass.
fn shortest_prefix(lane: u32, row: u32, range: Range, by: Weighing, wanted: f32) -> Range {
  var key = 0u;
  var above = 0.0;
  for (var unit = 0x40000000u; unit > 0u; unit >>= 2u) {
    var one = vec4f();
    var two = vec4f();
    var three = vec4f();
    for (var quad = lane; quad < QUADS; quad += LANES) {
      let own = weigh(row, quad, range, by);
      one += select(vec4f(), own.weights, own.keys >= vec4u(key + unit));
      two += select(vec4f(), own.weights, own.keys >= vec4u(key + 2u * unit));
      three += select(vec4f(), own.weights, own.keys >= vec4u(key + 3u * unit));
    }
    let ones = vec4f(1.0);
    let mass = total_of(lane, vec4f(dot(one, ones), dot(two, ones), dot(three, ones), 0.0));
    if (mass.z >= wanted) {
      key += 3u * unit;
    } else if (mass.y >= wanted) {
      key += 2u * unit;
      above = mass.z;
    } else if (mass.x >= wanted) {
      key += unit;
      above = mass.y;
    } else {
      above = mass.x;
    }
  }
  // Tokens of that one key are kept up to an id.
  let ties = ceil((wanted - above) / weight_of(key, by));
  let tied = Range(key, select(NONE, range.last_id, key == range.low), key);
  let last_id = token_at(lane, row, tied, Weighing(by.top, 0.0), 0.0, max(ties, 1.0) - 0.5);
  return Range(key, min(last_id, tied.last_id), range.high);
}

fn draw(lane: u32, row: u32, top: u32, param: vec4f, setting: vec4u) -> u32 {
  let everything = Range(0u, NONE, NONE);
  let counting = Weighing(top, 0.0);
  if (param.x <= 0.0) { return token_at(lane, row, Range(top, NONE, top), counting, 0.0, 0.5); }
  // Bounded, so that the scale and its products are numbers.
  let temperature = clamp(param.x, 1e-30, 1e30);
  let by = Weighing(top, 1.0 / temperature);
  var kept = everything;
  if (setting.x > 0u && setting.x < VOCABULARY) {
    kept = shortest_prefix(lane, row, kept, counting, f32(setting.x) - 0.5);
  }
  if (param.y < 1.0) {
    // A millionth is forgiven, so that sums in f32 reach what the same sums reach on paper; the top itself weighs 1.
    let wanted = max(0.5, param.y * weight_in(lane, row, kept, by) * 0.999999);
    kept = shortest_prefix(lane, row, kept, by, wanted);
  }
  if (param.z > 0.0) {
    let least = min(logit_of(top), logit_of(top) + log(min(param.z, 1.0)) * temperature);
    let key = min(top, keys_of(vec4f(least)).x);
    if (key > kept.low) { kept = Range(key, NONE, NONE); }
  }
  let random = philox(vec4u(setting.w, 0u, 0u, 0u), setting.yz);
  // Below 1 by more than the product's rounding.
  return token_at(lane, row, kept, by, min(uniform_of(random.x), 0.9999999), 0.0);
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let row = group.x + group.y * GRID_WIDTH;
  if (row >= u.rows) { return; }
  let top = first_in(lane, row);
  var token = 0u;
  var key = 0u;
  var normalizer = 0.0;
  if (top.key != BROKEN) {
    normalizer = normalizer_of(lane, row, top.key);
    token = min(draw(lane, row, top.key, params[u.first + row], settings[u.first + row]), VOCABULARY - 1u);
    key = keys_of(quad_at(row, token / 4u))[token % 4u];
  }
  if (lane == 0u) {
    tokens[u.first + row] = token;
    logprobs[u.first + row] = logprob_of(key, top.key, normalizer);
  }
}
