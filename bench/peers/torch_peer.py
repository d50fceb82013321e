"""PyTorch on the CPU with all cores: matrix products and GPT-2 training steps, one for each line read."""
import ctypes
import json
import math
import os
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

LEARNING_RATE, BETAS, EPS, WEIGHT_DECAY = 1e-3, (0.9, 0.95), 1e-8, 0.1


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.mlp_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def attend(self, x, mask):
        rows, time_, width = x.shape
        split = lambda part: part.view(rows, time_, self.heads, width // self.heads).transpose(1, 2)
        q, k, v = map(split, self.c_attn(x).split(width, dim=2))
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(width // self.heads)
        y = F.softmax(scores.masked_fill(mask, -math.inf), dim=-1) @ v
        return self.attn_proj(y.transpose(1, 2).reshape(rows, time_, width))

    def forward(self, x, mask):
        x = x + self.attend(self.ln_1(x), mask)
        # GELU by tanh, the cheaper way here, is what GPT-2 has.
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, work):
        super().__init__()
        width, self.context = work["width"], work["context"]
        self.wte, self.wpe = nn.Embedding(work["vocabulary"], width), nn.Embedding(self.context, width)
        self.blocks = nn.ModuleList(Block(width, work["heads"]) for _ in range(work["layers"]))
        self.ln_f = nn.LayerNorm(width)
        mask = torch.ones(self.context, self.context, dtype=torch.bool).triu(1)
        self.register_buffer("mask", mask, persistent=False)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight
        for block in self.blocks:
            x = block(x, self.mask)
        logits = self.ln_f(x) @ self.wte.weight.t()
        return F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))


def open_step(work):
    model = GPT(work)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPS)
    shape = (work["rows"], work["context"])
    tokens, targets = (torch.randint(work["vocabulary"], shape) for _ in range(2))

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = model(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1e6)
        optimizer.step()
        return loss.item()

    return step


def open_product(work):
    a, b = torch.rand(work["m"], work["k"]), torch.rand(work["k"], work["n"])
    return lambda: torch.mm(a, b)


def blas():
    """The library that multiplies matrices, and its kernels: Debian's alternatives differ by a factor of ten."""
    with open("/proc/self/maps") as maps:
        loaded = {line.split()[-1] for line in maps if "blas" in line}
    for path in loaded:
        try:
            core = ctypes.CDLL(path).openblas_get_corename
        except (AttributeError, OSError):
            continue
        core.restype = ctypes.c_char_p
        return f"OpenBLAS with kernels for {core().decode()}"
    return ", ".join(sorted(os.path.basename(path) for path in loaded)) or "BLAS unknown"


def main():
    torch.manual_seed(1)
    torch.set_num_threads(os.cpu_count())
    work = json.loads(sys.argv[1])
    run = open_step(work) if "layers" in work else open_product(work)
    run()
    about = f"{torch.__version__}, {torch.get_num_threads()} threads, {blas()}"
    print(json.dumps({"ready": {"about": about}}), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps({"ms": (time.perf_counter() - start) * 1000}), flush=True)


main()
