/** The error a user can act on, for the rooms above the kernels. */
export { UserError } from "../kernels/gpu/errors.ts";
