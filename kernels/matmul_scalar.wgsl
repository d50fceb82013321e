// One invocation, one element of C: the specification of the other kernels, right for any sizes on any adapter.
@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3u) {
  let row = id.y;
  let column = id.x;
  if (row >= sizes.m || column >= sizes.n) { return; }
  let step_a = select(1u, sizes.a_stride, TRANSPOSE_A);
  let step_b = select(sizes.b_stride, 1u, TRANSPOSE_B);
  var at_a = sizes.a_column + row * select(sizes.a_stride, 1u, TRANSPOSE_A);
  var at_b = sizes.b_column + column * select(1u, sizes.b_stride, TRANSPOSE_B);
  var sum = 0.0;
  for (var k = 0u; k < sizes.k; k++) {
    sum = fma(a_at(at_a), b_at(at_b), sum);
    at_a += step_a;
    at_b += step_b;
  }
  store(row, column, sum);
}
