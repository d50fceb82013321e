/** Which adapters a machine has and how a rank gets a certain one. It opens none. */

/** An adapter that a rank is to open. */
export interface AdapterChoice {
  readonly name: string;
  /** Identifies the board, where the driver tells: UUID, else PCI address. */
  readonly id: string | null;
  readonly type: "discrete" | "integrated" | "virtual" | "cpu" | "other";
  /** Environment that makes WebGPU show this adapter first; set before the rank asks for one. */
  readonly environment: Readonly<Record<string, string>>;
  readonly powerPreference: GPUPowerPreference;
}
