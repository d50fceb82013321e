/**
 * The loops of `sumInPlace` as a WebAssembly module, for its SIMD: V8 makes none of JavaScript's loops. It knows no rank and
 * no array.
 */

/** Sums `blocks` blocks, `bytes` apart from the memory's start on, into the first. `bytes` is a multiple of 64. */
type SumBlocks = (blocks: number, bytes: number) => void;

export interface SummingModule {
  readonly memory: { readonly buffer: ArrayBuffer; grow(pages: number): void };
  /** f32 values, ((first + second) + third) + … */
  readonly sumF32: SumBlocks;
  /** bf16 values, added in f32 in that order, and rounded once, to nearest even; NaN stays NaN. */
  readonly sumBf16: SumBlocks;
}

export function instantiateSumming(): SummingModule {
  const module = new WebAssembly.Module(new Uint8Array(moduleBytes()));
  return new WebAssembly.Instance(module).exports as unknown as SummingModule;
}

type Code = readonly number[];

// Parameters and locals, by index.
const [BLOCKS, BYTES, AT, FROM, LEFT, LOW, HIGH, HALVES] = [0, 1, 2, 3, 4, 5, 6, 7];
const [I32, V128, FUNCTION, NO_RESULT] = [0x7f, 0x7b, 0x60, 0x40];

const get = (local: number): Code => [0x20, local];
const set = (local: number): Code => [0x21, local];
const tee = (local: number): Code => [0x22, local];
const i32 = (value: number): Code => [0x41, ...signed(value)];
const [isZero, lessU, add, sub]: Code[] = [[0x45], [0x49], [0x6a], [0x6b]];
const end: Code = [0x0b];
const block = (...body: Code[]): Code => [0x02, NO_RESULT, ...body.flat(), ...end];
const loop = (...body: Code[]): Code => [0x03, NO_RESULT, ...body.flat(), ...end];
/** Leaves the innermost block, or repeats the innermost loop, where the top of the stack isn't 0. */
const branchIf: Code = [0x0d, 0];

const simd = (opcode: number, ...immediates: Code): Code => [0xfd, ...unsigned(opcode), ...immediates];
const load = (offset = 0): Code => simd(0x00, 0, offset);
const store = (offset = 0): Code => simd(0x0b, 0, offset);
const i32x4 = { splat: simd(0x11), shiftLeft: simd(0xab), shiftRightU: simd(0xad), add: simd(0xae) };
const f32x4 = { add: simd(0xe4) };
const v128 = { and: simd(0x4e) };
const splat = (value: number): Code => [...i32(value), ...i32x4.splat];

/** 4 of 8 bf16 values as f32: the halves with zeros below. */
const widenLow: Code = [...simd(0xa9), ...i32(16), ...i32x4.shiftLeft];
const widenHigh: Code = [...simd(0xaa), ...i32(16), ...i32x4.shiftLeft];
const upperHalves: Code = [...i32(16), ...i32x4.shiftRightU];
const narrow = simd(0x86);

/**
 * f32 bits rounded to bf16, as i32: 0x7fff more, and 1 more where the half would be odd, carries into it as it should. A NaN
 * stays one: the lower half is 0 in those of bf16 and in those that additions make.
 */
function rounded(local: number): Code {
  const odd = [...get(local), ...upperHalves, ...splat(1), ...v128.and];
  return [...get(local), ...splat(0x7fff), ...i32x4.add, ...odd, ...i32x4.add, ...upperHalves];
}

/** For each `step` bytes of the first block: begin there, take each other block's in, finish. */
function sumBlocks(step: number, { begin, take, finish }: { begin: Code; take: Code; finish: Code }): Code {
  const others = loop(
    [...get(FROM), ...get(BYTES), ...add, ...set(FROM)],
    take,
    [...get(LEFT), ...i32(1), ...sub, ...tee(LEFT), ...branchIf],
  );
  const steps = loop(
    begin,
    [...get(AT), ...set(FROM), ...get(BLOCKS), ...i32(1), ...sub, ...set(LEFT)],
    block([...get(LEFT), ...isZero, ...branchIf], others),
    finish,
    [...get(AT), ...i32(step), ...add, ...tee(AT), ...get(BYTES), ...lessU, ...branchIf],
  );
  const locals = [2, 3, I32, 3, V128];
  return sized([...locals, ...steps, ...end]);
}

const sumF32 = sumBlocks(32, {
  begin: [...get(AT), ...load(), ...set(LOW), ...get(AT), ...load(16), ...set(HIGH)],
  take: [
    ...[...get(LOW), ...get(FROM), ...load(), ...f32x4.add, ...set(LOW)],
    ...[...get(HIGH), ...get(FROM), ...load(16), ...f32x4.add, ...set(HIGH)],
  ],
  finish: [...get(AT), ...get(LOW), ...store(), ...get(AT), ...get(HIGH), ...store(16)],
});

const sumBf16 = sumBlocks(16, {
  begin: [
    ...[...get(AT), ...load(), ...tee(HALVES), ...widenLow, ...set(LOW)],
    ...[...get(HALVES), ...widenHigh, ...set(HIGH)],
  ],
  take: [
    ...[...get(LOW), ...get(FROM), ...load(), ...tee(HALVES), ...widenLow, ...f32x4.add, ...set(LOW)],
    ...[...get(HIGH), ...get(HALVES), ...widenHigh, ...f32x4.add, ...set(HIGH)],
  ],
  finish: [...get(AT), ...rounded(LOW), ...rounded(HIGH), ...narrow, ...store()],
});

function moduleBytes(): Code {
  const [FUNCTIONS, MEMORY] = [0, 2];
  const section = (id: number, ...items: Code[]) => [id, ...sized([items.length, ...items.flat()])];
  const exported = (name: string, kind: number, index: number) => {
    return [...sized([...new TextEncoder().encode(name)]), kind, index];
  };
  return [
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(1, [FUNCTION, 2, I32, I32, 0]),
    ...section(3, [0], [0]),
    ...section(5, [0, 1]),
    ...section(7, exported("memory", MEMORY, 0), exported("sumF32", FUNCTIONS, 0), exported("sumBf16", FUNCTIONS, 1)),
    ...section(10, sumF32, sumBf16),
  ];
}

function sized(bytes: Code): Code {
  return [...unsigned(bytes.length), ...bytes];
}

/** LEB128. */
function unsigned(value: number): Code {
  return value < 0x80 ? [value] : [(value & 0x7f) | 0x80, ...unsigned(value >>> 7)];
}

function signed(value: number): Code {
  return value >= -0x40 && value < 0x40 ? [value & 0x7f] : [(value & 0x7f) | 0x80, ...signed(value >> 7)];
}
