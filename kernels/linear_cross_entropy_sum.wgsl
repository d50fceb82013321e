// loss = scale * the sum of all rows' losses, by one workgroup in a fixed order.
struct Uniforms { rows: u32 }
@group(0) @binding(0) var<storage, read> losses: array<f32>;
@group(0) @binding(1) var<storage, read> scale: array<f32>;
@group(0) @binding(2) var<storage, read_write> loss: array<f32>;
@group(0) @binding(3) var<uniform> u: Uniforms;

const LANES = 64u;
var<workgroup> sums: array<f32, LANES>;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) lane: u32) {
  var sum = 0.0;
  for (var row = lane; row < u.rows; row += LANES) { sum += losses[row]; }
  sums[lane] = sum;
  for (var step = LANES / 2u; step > 0u; step /= 2u) {
    workgroupBarrier();
    if (lane < step) { sums[lane] += sums[lane + step]; }
  }
  if (lane == 0u) { loss[0] = sums[0] * scale[0]; }
}
