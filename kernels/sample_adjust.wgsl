// Penalties and bias of one token of one row, an invocation each. A row's entries name different tokens.

struct Uniforms { first: u32, entries: u32, per_row: u32 }
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
@group(0) @binding(1) var<storage, read> tokens: array<u32>;
@group(0) @binding(2) var<storage, read> counts: array<u32>;
@group(0) @binding(3) var<storage, read> biases: array<f32>;
// repetition, presence, frequency
@group(0) @binding(4) var<storage, read> penalties: array<vec4f>;
@group(0) @binding(5) var<uniform> u: Uniforms;

const SEEN = 0x80000000u;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  if (i >= u.entries) { return; }
  let row = i / u.per_row;
  let entry = u.first * u.per_row + i;
  if (tokens[entry] >= VOCABULARY) { return; }
  let penalty = penalties[u.first + row];
  let at = row * STRIDE + tokens[entry];
  let generated = f32(counts[entry] & ~SEEN);
  var logit = logits[at];
  if ((counts[entry] & SEEN) != 0u) { logit = select(logit * penalty.x, logit / penalty.x, logit > 0.0); }
  logits[at] = logit - penalty.y * min(generated, 1.0) - penalty.z * generated + biases[entry];
}
