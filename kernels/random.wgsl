// Philox4x32-10; random.ts says more.

fn multiply_high(a: u32, b: u32) -> u32 {
  let a_low = a & 0xffffu;
  let a_high = a >> 16u;
  let b_low = b & 0xffffu;
  let b_high = b >> 16u;
  let middle = a_high * b_low + ((a_low * b_low) >> 16u);
  return a_high * b_high + (middle >> 16u) + ((a_low * b_high + (middle & 0xffffu)) >> 16u);
}

fn philox_round(c: vec4u, k: vec2u) -> vec4u {
  let high = vec2u(multiply_high(0xd2511f53u, c.x), multiply_high(0xcd9e8d57u, c.z));
  return vec4u(high.y ^ c.y ^ k.x, 0xcd9e8d57u * c.z, high.x ^ c.w ^ k.y, 0xd2511f53u * c.x);
}

fn philox(counter: vec4u, key: vec2u) -> vec4u {
  let weyl = vec2u(0x9e3779b9u, 0xbb67ae85u);
  var c = philox_round(counter, key);
  c = philox_round(c, key + weyl);
  c = philox_round(c, key + 2u * weyl);
  c = philox_round(c, key + 3u * weyl);
  c = philox_round(c, key + 4u * weyl);
  c = philox_round(c, key + 5u * weyl);
  c = philox_round(c, key + 6u * weyl);
  c = philox_round(c, key + 7u * weyl);
  c = philox_round(c, key + 8u * weyl);
  return philox_round(c, key + 9u * weyl);
}

// In [0, 1), of the upper 24 bits.
fn uniform_of(bits: u32) -> f32 {
  return f32(bits >> 8u) * 0x1p-24;
}
