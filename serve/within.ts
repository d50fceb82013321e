/** Waiting with an end. It knows nothing that is waited for. */

/** Waits for something, but so many milliseconds at most. @returns whether it came. Rejects as it does. */
export async function within(wait: Promise<unknown>, milliseconds: number): Promise<boolean> {
  const late = Promise.withResolvers<boolean>();
  const timer = setTimeout(() => late.resolve(false), milliseconds);
  try {
    return await Promise.race([wait.then(() => true), late.promise]);
  } finally {
    clearTimeout(timer);
  }
}
