/** What is wrong, as OpenAI's API says it. It knows no route. */
import { z } from "@hono/zod-openapi";
import type { Context } from "hono";
import { HTTPException } from "hono/http-exception";

/** Which codes a refused or failed request gets. */
export type ErrorStatus = 400 | 401 | 404 | 405 | 408 | 413 | 415 | 429 | 500 | 503;

/** A request that can't be answered, in OpenAI's form. */
export class RequestError extends Error {
  override name = "RequestError";
  constructor(
    readonly status: ErrorStatus,
    message: string,
    readonly param: string | null = null,
    readonly code: string | null = null,
    /** Sent with the answer, as `Retry-After`. */
    readonly headers: Readonly<Record<string, string>> = {},
  ) {
    super(message);
  }
  get body(): ErrorBody {
    const type = this.status < 500 ? "invalid_request_error" : "server_error";
    return { error: { message: this.message, type, param: this.param, code: this.code } };
  }
}

export const ErrorBody = z.object({
  error: z.object({
    message: z.string(),
    type: z.string(),
    param: z.string().nullable(),
    code: z.string().nullable(),
  }),
}).openapi("Error");
export type ErrorBody = z.infer<typeof ErrorBody>;

/** What was thrown while a request was answered: the client's fault where it is known to be, else the server's. */
export function toRequestError(error: unknown): RequestError {
  if (error instanceof RequestError) return error;
  if (error instanceof HTTPException && error.status === 415) {
    return new RequestError(415, "Send the request as content-type: application/json");
  }
  if (error instanceof HTTPException) return new RequestError(400, "Send valid JSON as the request body");
  if (error instanceof RangeError) return new RequestError(400, error.message);
  return new RequestError(
    500,
    `The generation failed: ${error instanceof Error ? error.message : error}`,
    null,
    "engine_error",
  );
}

export function respond(c: Context, error: RequestError): Response {
  return c.json(error.body, error.status, error.headers);
}
