// One row of logits: its loss and, where GRADIENT, its gradient in place. One workgroup of LANES a row; row_max and
// row_sum reduce over the workgroup. Columns from VOCABULARY on are padding: no probability, gradient 0.
struct Uniforms { first_row: u32 }
@group(0) @binding(0) var<storage, read_write> logits: array<vec4f>;
@group(0) @binding(1) var<storage, read> targets: array<i32>;
@group(0) @binding(2) var<storage, read> scale: array<f32>;
@group(0) @binding(3) var<storage, read_write> losses: array<f32>;
@group(0) @binding(4) var<uniform> u: Uniforms;

const WHOLE = VOCABULARY / 4u;
const REST = VOCABULARY % 4u;
const LOWEST = -3.4028234e38;
const UNROLLED = 4u * LANES;

fn largest(x: vec4f) -> f32 { return max(max(x.x, x.y), max(x.z, x.w)); }
fn total(x: vec4f) -> f32 { return (x.x + x.y) + (x.z + x.w); }
fn inside(x: vec4f, otherwise: f32) -> vec4f {
  return select(vec4f(otherwise), x, vec4u(0u, 1u, 2u, 3u) < vec4u(REST));
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let first = group.x * STRIDE / 4u;
  let row = u.first_row + group.x;
  let label = targets[row];
  let counts = label >= 0 && label < i32(VOCABULARY);

  // A running maximum and the sum of exp(x - maximum), as in online softmax (Milakov and Gimelshein 2018).
  var highest = LOWEST;
  var sum = 0.0;
  var i = lane;
  for (; i + 3u * LANES < WHOLE; i += UNROLLED) {
    let x0 = logits[first + i];
    let x1 = logits[first + i + LANES];
    let x2 = logits[first + i + 2u * LANES];
    let x3 = logits[first + i + 3u * LANES];
    let next = max(highest, largest(max(max(x0, x1), max(x2, x3))));
    sum = sum * exp(highest - next) + total((exp(x0 - next) + exp(x1 - next)) + (exp(x2 - next) + exp(x3 - next)));
    highest = next;
  }
  for (; i < WHOLE; i += LANES) {
    let x = logits[first + i];
    let next = max(highest, largest(x));
    sum = sum * exp(highest - next) + total(exp(x - next));
    highest = next;
  }
  if (REST > 0u && i == WHOLE) {
    let x = logits[first + i];
    let next = max(highest, largest(inside(x, LOWEST)));
    sum = sum * exp(highest - next) + total(inside(exp(x - next), 0.0));
    highest = next;
  }
  let top = row_max(lane, highest);
  let normalizer = row_sum(lane, sum * exp(highest - top));

  // The lane that holds the target's vector is the only one to touch it.
  let place = select(0u, u32(label), counts);
  let owner = place / 4u % LANES == lane;
  if (owner) {
    let loss = log(normalizer) - (logits[first + place / 4u][place % 4u] - top);
    losses[row] = select(0.0, loss, counts);
  }
  if (!GRADIENT) { return; }
  if (!counts) {
    for (var j = lane; j < STRIDE / 4u; j += LANES) { logits[first + j] = vec4f(); }
    return;
  }
  let factor = scale[0];
  let share = factor / normalizer;
  var j = lane;
  for (; j + 3u * LANES < WHOLE; j += UNROLLED) {
    let x0 = logits[first + j];
    let x1 = logits[first + j + LANES];
    let x2 = logits[first + j + 2u * LANES];
    let x3 = logits[first + j + 3u * LANES];
    logits[first + j] = exp(x0 - top) * share;
    logits[first + j + LANES] = exp(x1 - top) * share;
    logits[first + j + 2u * LANES] = exp(x2 - top) * share;
    logits[first + j + 3u * LANES] = exp(x3 - top) * share;
  }
  for (; j < WHOLE; j += LANES) { logits[first + j] = exp(logits[first + j] - top) * share; }
  for (; j < STRIDE / 4u; j += LANES) {
    var x = vec4f();
    if (REST > 0u && j == WHOLE) { x = inside(exp(logits[first + j] - top) * share, 0.0); }
    logits[first + j] = x;
  }
  if (owner) { logits[first + place / 4u][place % 4u] -= factor; }
}
