/** Lines about what a server does, for people or for machines. It knows no request and never sees a prompt unless it is told one. */

export const logLevels = ["info", "error", "off"] as const;
export type LogLevel = (typeof logLevels)[number];

export const logFormats = ["text", "json"] as const;
export type LogFormat = (typeof logFormats)[number];

export type Fields = Readonly<Record<string, string | number | boolean | readonly string[] | undefined>>;

export interface Log {
  info(event: string, fields?: Fields): void;
  error(event: string, fields?: Fields): void;
}

export interface LogOptions {
  /** What is left out: `error` leaves out what went well. */
  readonly level: LogLevel;
  readonly format: LogFormat;
  /** Takes a line. Default: standard error. */
  readonly write?: (line: string) => void;
  readonly now?: () => Date;
}

/** Makes a log; each line has its time, level and event first, then the fields that say something. */
export function createLog({ level, format, write = console.error, now = () => new Date() }: LogOptions): Log {
  const line = format === "json" ? jsonLine : textLine;
  const at = (lineLevel: "info" | "error") => (event: string, fields: Fields = {}) => {
    if (logLevels.indexOf(lineLevel) >= logLevels.indexOf(level)) {
      write(line({ time: now().toISOString(), level: lineLevel, event }, fields));
    }
  };
  return { info: at("info"), error: at("error") };
}

type Head = Readonly<Record<"time" | "level" | "event", string>>;

const jsonLine = (head: Head, fields: Fields) => JSON.stringify({ ...head, ...fields });

function textLine({ time, level, event }: Head, fields: Fields): string {
  const words = Object.entries(fields).flatMap(([name, value]) =>
    value === undefined ? [] : [`${name}=${word(value)}`]
  );
  return [time, level, event, ...words].join(" ");
}

/** A value without spaces as it is, any other as JSON, so that no text can forge a line. */
function word(value: NonNullable<Fields[string]>): string {
  const text = Array.isArray(value) ? value.join(",") : String(value);
  return /^[\w./:,@+-]+$/.test(text) ? text : JSON.stringify(text);
}
