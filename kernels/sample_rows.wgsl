// A row of logits as one workgroup sees it: read four at a time, ordered by keys, added up over the lanes. The text before
// it declares `quad_at(row, quad)`, the logits of tokens 4 * quad to 4 * quad + 3.

const QUADS = (VOCABULARY + 3u) / 4u;
const NONE = 0xffffffffu;
// The key that no token has but one whose logit is NaN: the row is broken then.
const BROKEN = 0xffffffffu;

var<workgroup> words: array<vec4u, LANES>;
var<workgroup> parts: array<vec4u, PARTS>;
// What all invocations agree on, so that they may branch on it round barriers.
var<workgroup> agreed: vec4u;

// Sums of the lanes' values, in a fixed order.
fn total_of(lane: u32, value: vec4f) -> vec4f {
  words[lane] = bitcast<vec4u>(value);
  workgroupBarrier();
  if (lane < PARTS) {
    var sum = vec4f();
    for (var i = lane; i < LANES; i += PARTS) { sum += bitcast<vec4f>(words[i]); }
    parts[lane] = bitcast<vec4u>(sum);
  }
  workgroupBarrier();
  if (lane == 0u) {
    var sum = vec4f();
    for (var i = 0u; i < PARTS; i++) { sum += bitcast<vec4f>(parts[i]); }
    agreed = bitcast<vec4u>(sum);
  }
  return bitcast<vec4f>(workgroupUniformLoad(&agreed));
}

// A token and its key.
struct Entry { key: u32, id: u32 }

fn precedes(a: Entry, b: Entry) -> bool {
  return a.key > b.key || (a.key == b.key && a.id < b.id);
}

// The first of the lanes' entries.
fn first_of(lane: u32, entry: Entry) -> Entry {
  words[lane] = vec4u(entry.key, entry.id, 0u, 0u);
  workgroupBarrier();
  if (lane < PARTS) {
    var first = Entry(0u, NONE);
    for (var i = lane; i < LANES; i += PARTS) {
      let other = Entry(words[i].x, words[i].y);
      if (precedes(other, first)) { first = other; }
    }
    parts[lane] = vec4u(first.key, first.id, 0u, 0u);
  }
  workgroupBarrier();
  if (lane == 0u) {
    var first = Entry(0u, NONE);
    for (var i = 0u; i < PARTS; i++) {
      let other = Entry(parts[i].x, parts[i].y);
      if (precedes(other, first)) { first = other; }
    }
    agreed = vec4u(first.key, first.id, 0u, 0u);
  }
  let first = workgroupUniformLoad(&agreed);
  return Entry(first.x, first.y);
}

// Order as the logits do; -0 is 0. Bits decide, because compilers take floats for numbers.
fn keys_of(logits: vec4f) -> vec4u {
  let bits = bitcast<vec4u>(logits);
  let negative = bits > vec4u(0x80000000u);
  let keys = select(bits | vec4u(0x80000000u), ~bits, negative);
  return select(keys, vec4u(BROKEN), (bits & vec4u(0x7fffffffu)) > vec4u(0x7f800000u));
}

fn logit_of(key: u32) -> f32 {
  return bitcast<f32>(select(~key, key & 0x7fffffffu, (key & 0x80000000u) != 0u));
}

fn ids_of(quad: u32) -> vec4u {
  return 4u * quad + vec4u(0u, 1u, 2u, 3u);
}

// Keys of a quad; 0, which no logit has, past the vocabulary.
fn keys_at(quad: u32, logits: vec4f) -> vec4u {
  if (VOCABULARY % 4u == 0u) { return keys_of(logits); }
  return select(keys_of(logits), vec4u(), ids_of(quad) >= vec4u(VOCABULARY));
}

// The first token of the row whose key is below `key`, or equal to it with an id from `from_id` on.
fn first_from(lane: u32, row: u32, key: u32, from_id: u32) -> Entry {
  var best = Entry(0u, NONE);
  for (var quad = lane; quad < QUADS; quad += LANES) {
    let keys = keys_at(quad, quad_at(row, quad));
    let follows = (keys < vec4u(key)) | ((keys == vec4u(key)) & (ids_of(quad) >= vec4u(from_id)));
    let left = select(vec4u(), keys, follows);
    let most = max(max(left.x, left.y), max(left.z, left.w));
    if (most > best.key) {
      best.key = most;
      best.id = 4u * quad + select(select(select(3u, 2u, left.z == most), 1u, left.y == most), 0u, left.x == most);
    }
  }
  return first_of(lane, best);
}

// The first token of the row, by logit and then by id; its key is BROKEN where the row has a NaN.
fn first_in(lane: u32, row: u32) -> Entry {
  return first_from(lane, row, BROKEN, 0u);
}

// log Σ exp(logit - highest). A token at the top counts 1, so that infinities give numbers.
fn normalizer_of(lane: u32, row: u32, top: u32) -> f32 {
  var sum = vec4f();
  for (var quad = lane; quad < QUADS; quad += LANES) {
    let logits = quad_at(row, quad);
    let keys = keys_at(quad, logits);
    sum += select(select(exp(logits - logit_of(top)), vec4f(), keys == vec4u()), vec4f(1.0), keys == vec4u(top));
  }
  return log(dot(total_of(lane, sum), vec4f(1.0)));
}

fn logprob_of(key: u32, top: u32, normalizer: f32) -> f32 {
  if (top == BROKEN) { return bitcast<f32>(top); }
  return select(logit_of(key) - logit_of(top), 0.0, key == top) - normalizer;
}
