// Sums of columns over blocks of rows, one block a workgroup row; Element is f32 or vec4f and WIDTH counts Elements.
// Long columns go in two passes: blocks of x to partial sums, then all partial sums to the result.
struct Uniforms { rows: u32, block: u32, first_block: u32 }
@group(0) @binding(0) var<storage, read> x: array<Element>;
@group(0) @binding(1) var<storage, read_write> sums: array<Element>;
@group(0) @binding(2) var<uniform> u: Uniforms;

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(global_invocation_id) id: vec3u) {
  if (id.x >= WIDTH) { return; }
  let first = id.y * u.block;
  let last = min(first + u.block, u.rows);
  var sum = Element();
  for (var row = first; row < last; row++) { sum += x[row * WIDTH + id.x]; }
  let place = (u.first_block + id.y) * WIDTH + id.x;
  if (ACCUMULATE) { sum += sums[place]; }
  sums[place] = sum;
}
