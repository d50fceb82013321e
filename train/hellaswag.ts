/**
 * HellaSwag (Zellers et al. 2019): which of four endings continues a text best. Reads its JSON lines and scores endings by
 * their log-likelihood. It knows no GPU; what computes losses comes in.
 */
import { UserError } from "../model/errors.ts";
import { explainIo } from "../model/files.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import { packTexts, type ScoredText, type Scorer } from "./scorer.ts";

export interface Question {
  readonly context: string;
  readonly endings: readonly string[];
  /** Index of the right ending. */
  readonly label: number;
}

export interface HellaSwagResult {
  readonly questions: number;
  /** Share of questions whose right ending has the highest log-likelihood. */
  readonly accuracy: number;
  /** The same with the log-likelihood divided by the ending's tokens. */
  readonly accuracyNormalized: number;
}

/** Questions whose endings share batches. */
const TOGETHER = 32;

/** @throws UserError naming the line that is no question. */
export async function readQuestions(path: string): Promise<Question[]> {
  const text = await Deno.readTextFile(path).catch((error) => {
    throw explainIo("read", path, error);
  });
  const questions = text.split("\n").flatMap((line, index) => {
    return line.trim() === "" ? [] : [parseQuestion(line, `${path}, line ${index + 1}`)];
  });
  if (questions.length === 0) throw new UserError(`Cannot use ${path}: it holds no question`);
  return questions;
}

function parseQuestion(line: string, place: string): Question {
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(line);
  } catch {
    throw new UserError(`Cannot use ${place}: no valid JSON`);
  }
  const { ctx: context, endings } = json ?? {};
  const label = Number(json?.label);
  const right = typeof context === "string" && Array.isArray(endings) && endings.length > 1 &&
    endings.every((ending) => typeof ending === "string" && ending !== "");
  if (!right) throw new UserError(`Cannot use ${place}: wanted the fields ctx (a text) and endings (a list of texts)`);
  if (json.label === "" || !Number.isInteger(label) || label < 0 || label >= endings.length) {
    throw new UserError(
      `Cannot use ${place}: label is ${JSON.stringify(json.label)}, wanted 0 to ${endings.length - 1}`,
    );
  }
  return { context: context as string, endings: endings as string[], label };
}

/**
 * Scores questions as is usual for GPT-2: an ending's likelihood is that of its tokens, a space before it, after the context's,
 * with nothing before these. Of a text longer than the model's context the last tokens count.
 */
export async function hellaswag(
  questions: readonly Question[],
  tokenizer: Tokenizer,
  scorer: Scorer,
  onProgress: (done: number, result: HellaSwagResult) => void = () => {},
): Promise<HellaSwagResult> {
  let [done, right, rightNormalized] = [0, 0, 0];
  const result = () => ({ questions: done, accuracy: right / done, accuracyNormalized: rightNormalized / done });
  for (let from = 0; from < questions.length; from += TOGETHER) {
    const some = questions.slice(from, from + TOGETHER);
    const texts = some.map(({ context, endings }) => {
      return endings.map((ending) => endingText(tokenizer, context, ending, scorer.contextLength));
    });
    const losses: number[] = [];
    for (const { batch, sums } of packTexts(texts.flat(), scorer.rows)) {
      losses.push(...sums(await scorer.losses(batch)));
    }
    for (const [i, { label }] of some.entries()) {
      const own = losses.splice(0, texts[i].length);
      if (lowest(own) === label) right++;
      if (lowest(own.map((loss, ending) => loss / texts[i][ending].scored)) === label) rightNormalized++;
    }
    onProgress(done += some.length, result());
  }
  return result();
}

function endingText(tokenizer: Tokenizer, context: string, ending: string, longest: number): ScoredText {
  const before = tokenizer.encode(context);
  const after = tokenizer.encode(` ${ending}`);
  const tokens = Uint32Array.from([...before, ...after]).slice(-(longest + 1));
  return { tokens, scored: Math.min(after.length, tokens.length - 1) };
}

function lowest(values: readonly number[]): number {
  return values.reduce((best, value, index) => value < values[best] ? index : best, 0);
}
