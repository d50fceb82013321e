// Halves and f32 by their bits, so that subnormals, infinities and NaNs are what IEEE 754 says on every adapter: WGSL lets
// float arithmetic flush subnormals, and pack2x16float make anything of what passes f16's range.

fn bf16_of(x: u32) -> u32 {
  let rounded = (x + 0x7fffu + ((x >> 16u) & 1u)) >> 16u;
  // A NaN keeps its upper payload and becomes quiet: rounding could carry it to infinity.
  return select(rounded, (x >> 16u) | 0x40u, (x & 0x7fffffffu) > 0x7f800000u);
}

fn f32_of_bf16(half: u32) -> u32 {
  return half << 16u;
}

fn f16_of(x: u32) -> u32 {
  let magnitude = x & 0x7fffffffu;
  var half: u32;
  if (magnitude >= 0x47800000u) { // 2^16 and more
    half = select(0x7c00u, 0x7e00u | ((magnitude >> 13u) & 0x3ffu), magnitude > 0x7f800000u);
  } else if (magnitude >= 0x38800000u) { // 2^-14 and more: normal; rounding up at 65,520 gives infinity
    half = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13u) & 1u)) >> 13u;
  } else { // units of 2^-24
    let shift = min(126u - (magnitude >> 23u), 31u);
    let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    half = (mantissa + (1u << (shift - 1u)) - 1u + ((mantissa >> shift) & 1u)) >> shift;
  }
  return ((x >> 16u) & 0x8000u) | half;
}

fn f32_of_f16(half: u32) -> u32 {
  let sign = (half & 0x8000u) << 16u;
  let magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) { return sign | 0x7f800000u | ((magnitude & 0x3ffu) << 13u); }
  if (magnitude >= 0x400u) { return sign | ((magnitude << 13u) + 0x38000000u); }
  return sign | bitcast<u32>(f32(magnitude) * 0x1p-24);
}
