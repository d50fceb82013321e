// @ts-check
/// <reference lib="dom" />
/** Keeps the end of a growing text in view, for a reader who is there. It knows no text. */

/**
 * Call what this returns when text has been added. Layout is asked for once a frame at most: once a token would take time
 * with the square of the text.
 *
 * @param {HTMLElement} output scrolls by itself where there is room for it; else the page does
 * @param {boolean} wanted at first, wherever the reader is
 */
export function createFollower(output, wanted) {
  const scroller = () => getComputedStyle(output).overflowY === "auto" ? output : document.documentElement;
  const isAtEnd = () => {
    const { scrollTop, clientHeight, scrollHeight } = scroller();
    return scrollTop + clientHeight >= scrollHeight - 4;
  };
  let atEnd = wanted || isAtEnd();
  let height = 0;
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      const element = scroller();
      // Scrolled since the last frame: by the reader, for here it ended at the height that it had then.
      if (height > 0) atEnd = element.scrollTop + element.clientHeight >= height - 4;
      height = element.scrollHeight;
      if (atEnd) element.scrollTop = height;
    });
  };
}
