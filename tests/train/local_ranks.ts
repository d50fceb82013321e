/** Ranks of one thread, that take turns: communicators for tests, by promises alone. */
import { type Communicator, MEMORY_BYTES, type Summands } from "../../train/communicator.ts";
import { sumInPlace } from "../../train/summing.ts";

/** The communicators of `size` ranks. */
export function localRanks(size: number): Communicator[] {
  const calls = Array.from({ length: size }, () => 0);
  const meetings = new Map<number, { given: unknown[]; arrived: number; open: PromiseWithResolvers<void> }>();
  /** The ranks' calls of one number meet; the last to come looks at what all gave. */
  const meet = async <T>(rank: number, own: T, last: (all: readonly T[]) => void): Promise<void> => {
    const number = calls[rank]++;
    const meeting = meetings.get(number) ?? { given: [], arrived: 0, open: Promise.withResolvers<void>() };
    meetings.set(number, meeting);
    meeting.given[rank] = own;
    if (++meeting.arrived === size) {
      meetings.delete(number);
      last(meeting.given as T[]);
      meeting.open.resolve();
    }
    await meeting.open.promise;
  };
  return Array.from({ length: size }, (_, rank): Communicator => ({
    rank,
    size,
    memory: new Uint8Array(MEMORY_BYTES),
    allReduce: (data) => meet<Summands>(rank, data, sumInPlace),
    broadcast: (data, root) => {
      return meet<Uint8Array>(rank, data, (all) => all.forEach((other) => other !== all[root] && other.set(all[root])));
    },
    barrier: () => meet(rank, null, () => {}),
    [Symbol.asyncDispose]: () => Promise.resolve(),
  }));
}

/** Runs every rank at once. */
export function together<T>(size: number, body: (communicator: Communicator) => Promise<T>): Promise<T[]> {
  return Promise.all(localRanks(size).map(body));
}
