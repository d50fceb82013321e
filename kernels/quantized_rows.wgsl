// Rows of a quantized matrix as f32, an invocation a word of EACH values; `values` holds rows u.first to u.end.
struct Uniforms { rows: u32, first: u32, end: u32 }
@group(0) @binding(0) var<storage, read> values: array<u32>;
@group(0) @binding(1) var<storage, read> scales: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

const BITS = 32u / EACH;

fn scale_of(row: u32, column: u32) -> f32 {
  if (DOWN) { return scales[row / GROUP * SCALE_WIDTH + column]; }
  return scales[row / SCALE_ROWS * SCALE_WIDTH + column / GROUP * SCALE_ROWS + row % SCALE_ROWS];
}

@compute @workgroup_size(WORKGROUP)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
  let i = (group.x + group.y * GRID_WIDTH) * WORKGROUP + lane;
  let row = i / WORDS;
  if (row >= u.rows) { return; }
  let id = id_of(row);
  let inside = id >= u.first && id < u.end;
  // An index outside of the table takes zeroes, and a slice leaves the others' rows alone.
  if (!inside && (id < ROWS || u.first > 0u)) { return; }
  let word = select(0u, values[(id - u.first) * WORDS + i % WORDS], inside);
  for (var j = 0u; j < EACH; j++) {
    let column = i % WORDS * EACH + j;
    if (column >= COLUMNS) { break; }
    let integer = extractBits(bitcast<i32>(word), j * BITS, BITS);
    y[row * COLUMNS + column] = select(0.0, f32(integer) * scale_of(id, column), inside);
  }
}
