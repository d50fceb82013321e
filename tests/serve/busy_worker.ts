/** A Worker that computes in steps of 20 ms and answers each message with how many steps began since it was sent. */
import { createTurns } from "../../serve/turns.ts";

const scope = self as unknown as { onmessage: (event: MessageEvent<number>) => void; postMessage(steps: number): void };
const now = () => performance.timeOrigin + performance.now();
const nextTurn = createTurns();
const begun: number[] = [];

scope.onmessage = ({ data: sent }) => scope.postMessage(begun.filter((time) => time > sent).length);

scope.postMessage(0);
for (;;) {
  await nextTurn();
  begun.push(now());
  while (now() - begun.at(-1)! < 20);
}
