/** Which files of a dataset on the Hugging Face Hub are meant by hf:owner/dataset[@revision][/config]. It reads none. */
import { UserError } from "../model/errors.ts";
import { hubError, type Location, retryingFetch } from "./prepare_bytes.ts";

export interface HubOptions {
  /** Default: HF_ENDPOINT, or huggingface.co. */
  readonly hubUrl?: string;
  /** Default: HF_TOKEN. */
  readonly accessToken?: string;
}

interface HubFile {
  readonly path: string;
  readonly location: Location;
  readonly bytes: number;
  readonly tag: string;
}

/** A configuration in a dataset's card, as far as it says which files hold its data. */
interface Config {
  readonly config_name?: string;
  readonly default?: boolean;
  readonly data_files?:
    | string
    | readonly (string | { readonly split?: string; readonly path?: string | readonly string[] })[];
}

/**
 * Lists the data files of a dataset. What follows its name is a configuration of its card, or a folder or file in it; the
 * revision is pinned to its commit. Where files are told apart by split, those for training are taken.
 */
export async function hubSources(
  input: string,
  isData: (path: string) => boolean,
  options: HubOptions,
): Promise<HubFile[]> {
  const match = /^hf:(?:datasets\/)?([^/@\s]+\/[^/@\s]+)(?:@([^/\s]+))?(?:\/(.*))?$/.exec(input);
  if (!match) throw new UserError(`Cannot understand ${input}: write hf:owner/dataset, then /config if it has several`);
  const [, repo, wanted, within = ""] = match;
  const { hubUrl = Deno.env.get("HF_ENDPOINT"), accessToken = Deno.env.get("HF_TOKEN") } = options;
  const { datasetInfo, listFiles } = await import("@huggingface/hub");
  const common = { hubUrl: hubUrl?.replace(/\/+$/, ""), accessToken, fetch: retryingFetch as typeof fetch };
  try {
    const additionalFields = ["sha", "cardData"] as const;
    const info = await datasetInfo({
      name: repo,
      revision: wanted,
      additionalFields: [...additionalFields],
      ...common,
    });
    const revision = info.sha;
    const files = new Map<string, { bytes: number; tag: string }>();
    for await (
      const file of listFiles({ repo: { type: "dataset", name: repo }, recursive: true, revision, ...common })
    ) {
      if (file.type === "file") files.set(file.path, { bytes: file.lfs?.size ?? file.size, tag: tagOf(file) });
    }
    const configs = (info.cardData as { configs?: readonly Config[] } | undefined)?.configs ?? [];
    const chosen = choose([...files.keys()].sort(), isData, configs, within.replace(/\/+$/, ""), input);
    return chosen.map((path) => ({
      path: `hf:${repo}@${revision}/${path}`,
      location: { kind: "hub", repo, revision, path, hubUrl: common.hubUrl, accessToken },
      ...files.get(path)!,
    }));
  } catch (error) {
    throw hubError(input, error);
  }
}

function tagOf({ lfs, oid }: { lfs?: { oid: string }; oid?: string }): string {
  return lfs ? `sha256:${lfs.oid.replace(/^sha256:/, "")}` : `git:${oid}`;
}

function choose(
  files: readonly string[],
  isData: (path: string) => boolean,
  configs: readonly Config[],
  within: string,
  input: string,
): string[] {
  const data = files.filter(isData);
  const config = within === ""
    ? configs.find((each) => each.default || each.config_name === "default") ??
      (configs.length === 1 ? configs[0] : undefined)
    : configs.find((each) => each.config_name === within);
  if (config) {
    const patterns = trainPatterns(config);
    if (patterns.length > 0) return files.filter((file) => patterns.some((pattern) => pattern.test(file)));
  }
  if (within === "" && configs.length > 1) {
    const names = configs.map(({ config_name }) => config_name).join(", ");
    throw new UserError(`Cannot choose a configuration of ${input}: append one of ${names} after a slash`);
  }
  if (files.includes(within)) return [within];
  const inside = within === "" ? data : data.filter((file) => file.startsWith(`${within}/`));
  if (inside.length > 0) return trainOnly(inside);
  const names = configs.map(({ config_name }) => config_name).join(", ");
  throw new UserError(
    `Cannot find ${within || "data"} in ${input}: no such folder or file${names && `; configurations: ${names}`}`,
  );
}

function trainPatterns({ data_files: files }: Config): RegExp[] {
  if (files === undefined) return [];
  const entries = (typeof files === "string" ? [files] : files).map((each) =>
    typeof each === "string" ? { path: each } : each
  );
  const train = entries.filter((entry) => "split" in entry && entry.split === "train");
  return (train.length > 0 ? train : entries).flatMap(({ path = [] }) => path).map(glob);
}

/** Files whose paths say train, where any does: the others are there to measure with. */
function trainOnly(files: readonly string[]): string[] {
  const train = files.filter((file) => /(^|[-_./])train([-_./]|$)/.test(file));
  return train.length > 0 ? train : [...files];
}

function glob(pattern: string): RegExp {
  const source = pattern.replace(/^\.\//, "").replace(/\*\*\/|\*\*|\*|\?|[.+^${}()|[\]\\]/g, (part) => {
    if (part === "**/") return "(?:.*/)?";
    if (part === "**") return ".*";
    if (part === "*") return "[^/]*";
    return part === "?" ? "[^/]" : `\\${part}`;
  });
  return new RegExp(`^${source}$`);
}
