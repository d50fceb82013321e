// Activations and their slopes over T, a vec4f or an f32.

// tanh as 1 - 2 / (1 + e^2x): exact at both ends, and faster than the built-in where exp2 is native.
fn tanh_of(x: T) -> T {
  return T(1.0) - T(2.0) / (T(1.0) + exp2(2.8853900817779268 * x));
}

fn gelu_tanh(x: T) -> T {
  return 0.5 * x * (T(1.0) + tanh_of(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

fn gelu_tanh_slope(large: T) -> T {
  // Flat beyond; no infinity times 0.
  let x = clamp(large, T(-30.0), T(30.0));
  let t = tanh_of(0.7978845608028654 * (x + 0.044715 * x * x * x));
  let inner = 0.7978845608028654 * (T(1.0) + 0.134145 * x * x);
  return 0.5 * (T(1.0) + t) + 0.5 * x * (T(1.0) - t * t) * inner;
}

// The normal distribution function, erfc(-x / √2) / 2, by the Chebyshev fit of Press et al. (Numerical Recipes, 6.2) whose
// fractional error is below 1.2e-7.
fn normal_below(x: T) -> T {
  let z = abs(x) * 0.7071067811865476;
  let t = T(1.0) / (T(1.0) + 0.5 * z);
  let series = T(-1.26551223) + t * (T(1.00002368) + t * (T(0.37409196) + t * (T(0.09678418) + t * (T(-0.18628806) +
    t * (T(0.27886807) + t * (T(-1.13520398) + t * (T(1.48851587) + t * (T(-0.82215223) + t * T(0.17087277)))))))));
  let tail = 0.5 * t * exp(series - z * z);
  return select(tail, T(1.0) - tail, x > T(0.0));
}

fn gelu_erf(x: T) -> T {
  return x * normal_below(x);
}

fn gelu_erf_slope(x: T) -> T {
  return normal_below(x) + x * 0.3989422804014327 * exp(-0.5 * x * x);
}

fn sigmoid(x: T) -> T {
  return T(1.0) / (T(1.0) + exp2(-1.4426950408889634 * x));
}

fn silu(x: T) -> T {
  return x * sigmoid(x);
}

fn silu_slope(x: T) -> T {
  let s = sigmoid(x);
  return s * (T(1.0) + x * (T(1.0) - s));
}
