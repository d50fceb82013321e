/** An ONNX model of one MatMul, as the bytes of its protobuf messages (github.com/onnx/onnx, onnx.proto). */

const FLOAT = 1;
const IR_VERSION = 8;
const OPSET = 13;

function varint(value: number): number[] {
  return value < 128 ? [value] : [value & 127 | 128, ...varint(Math.floor(value / 128))];
}

function integer(field: number, value: number): number[] {
  return [...varint(field << 3), ...varint(value)];
}

function message(field: number, bytes: readonly number[]): number[] {
  return [...varint(field << 3 | 2), ...varint(bytes.length), ...bytes];
}

function text(field: number, value: string): number[] {
  return message(field, [...new TextEncoder().encode(value)]);
}

/** ValueInfoProto: a name and a tensor's type. */
function value(name: string, shape: readonly number[]): number[] {
  const dimensions = shape.flatMap((size) => message(1, integer(1, size)));
  const tensor = [...integer(1, FLOAT), ...message(2, dimensions)];
  return [...text(1, name), ...message(2, message(1, tensor))];
}

/** c (m, n) = a (m, k) b (k, n). */
export function matmulModel(m: number, k: number, n: number): Uint8Array {
  const node = [...text(1, "a"), ...text(1, "b"), ...text(2, "c"), ...text(4, "MatMul")];
  const graph = [
    ...message(1, node),
    ...text(2, "matmul"),
    ...message(11, value("a", [m, k])),
    ...message(11, value("b", [k, n])),
    ...message(12, value("c", [m, n])),
  ];
  const opset = [...text(1, ""), ...integer(2, OPSET)];
  return new Uint8Array([...integer(1, IR_VERSION), ...message(7, graph), ...message(8, opset)]);
}
