/** The errors that rooms above the kernels know. */
export { OutOfMemoryError, UserError } from "../kernels/gpu/errors.ts";
