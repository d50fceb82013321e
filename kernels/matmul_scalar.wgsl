// One invocation, one element of C: the specification of the other kernels, right for any sizes on any adapter.
@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) id: vec3u, @builtin(workgroup_id) group: vec3u) {
  let row = id.y;
  let column = id.x;
  if (row >= sizes.m || column >= sizes.n) { return; }
  let step_a = select(1u, sizes.a_stride, TRANSPOSE_A);
  let step_b = select(sizes.b_stride, 1u, TRANSPOSE_B);
  let first_k = group.z * sizes.k_part;
  var at_a = sizes.a_column + row * select(sizes.a_stride, 1u, TRANSPOSE_A) + first_k * step_a;
  var at_b = sizes.b_column + column * select(1u, sizes.b_stride, TRANSPOSE_B) + first_k * step_b;
  var sum = 0.0;
  for (var k = first_k; k < min(sizes.k, first_k + sizes.k_part); k++) {
    sum = fma(a_at(at_a), b_at(at_b), sum);
    at_a += step_a;
    at_b += step_b;
  }
  store_element(group.z, row, column, sum);
}
