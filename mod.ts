/** wgpt: train and serve GPT-class language models on WebGPU. */
export {};
