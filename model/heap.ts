/** A binary heap: hands out the first of its items in a given order. It knows nothing of what they are. */

export interface Heap<T> {
  readonly size: number;
  push(item: T): void;
  /** Takes out the first item; undefined when empty. */
  pop(): T | undefined;
}

/** `before(a, b)` says that a comes out before b. push and pop take O(log size). */
export function createHeap<T>(before: (a: T, b: T) => boolean): Heap<T> {
  const items: T[] = [];

  function push(item: T): void {
    let at = items.length;
    items.push(item);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!before(item, items[parent])) break;
      items[at] = items[parent];
      at = parent;
    }
    items[at] = item;
  }

  function sink(item: T): void {
    const size = items.length;
    let at = 0;
    for (let child = 1; child < size; child = 2 * at + 1) {
      if (child + 1 < size && before(items[child + 1], items[child])) child++;
      if (!before(items[child], item)) break;
      items[at] = items[child];
      at = child;
    }
    items[at] = item;
  }

  function pop(): T | undefined {
    const first = items[0];
    const last = items.pop();
    if (items.length > 0) sink(last as T);
    return first;
  }

  return {
    get size() {
      return items.length;
    },
    push,
    pop,
  };
}
