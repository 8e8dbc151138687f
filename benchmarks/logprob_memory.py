"""Peak memory of token log-probs, forward and backward: `logprobs` against the naive way, in one run.

The naive way is `log_softmax(head(hidden).float())` and a gather over all tokens. Ours also gives the entropy, as the
learner asks for it. Each variant runs in a process of its own and reports how far its peak resident memory rose above
what weights, hidden states and their gradients took already. CPU only. With chunks under about 100 MiB the number is
too high for ours, because the C library's allocator keeps freed blocks of up to 32 MiB (MALLOC_MMAP_THRESHOLD_=4000000
in the environment shows it).

    python benchmarks/logprob_memory.py --tokens 2048 --vocab 150000 --hidden 256
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

# A process is reported to have peaked at least as high as the one that started it, so nothing large is imported here.


def main() -> None:
    args = _arguments()
    if args.variant:
        print(json.dumps(_measure(args)))
        return
    results = {variant: _in_own_process(variant) for variant in ("naive", "chunked")}
    naive, ours = results["naive"], results["chunked"]
    print(f"{args.tokens} tokens, vocabulary {args.vocab}, hidden {args.hidden}, {args.dtype}, ", end="")
    print(f"chunks of {args.chunk_mib} MiB; float32 logits of all tokens: {_mib(4 * args.tokens * args.vocab)}")
    print(f"{'variant':<10}{'peak memory':>14}{'of naive':>10}{'time':>9}{'of naive':>10}{'sum of log-probs':>19}")
    for name, result in results.items():
        memory, seconds = result["peak_bytes"] / naive["peak_bytes"], result["time_s"] / naive["time_s"]
        print(f"{name:<10}{_mib(result['peak_bytes']):>14}{memory:>10.3f}", end="")
        print(f"{result['time_s']:>8.1f}s{seconds:>10.2f}{result['sum']:>19.1f}")
    print(f"peak memory ratio naive / chunked: {naive['peak_bytes'] / ours['peak_bytes']:.1f}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048, help="completion tokens of a micro-batch")
    parser.add_argument("--vocab", type=int, default=150_000)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the head and the hidden states")
    parser.add_argument("--chunk-mib", type=int, default=128, help="learner.logprob_chunk_bytes in MiB")
    parser.add_argument("--variant", choices=("naive", "chunked"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_own_process(variant: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--variant", variant]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def _measure(args: argparse.Namespace) -> dict[str, float]:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import torch

    from volley.learner.compute.logprobs import chunked_logprobs

    torch.manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype]
    head = torch.nn.Linear(args.hidden, args.vocab, bias=False, dtype=dtype)
    hidden = torch.randn(args.tokens, args.hidden, dtype=dtype, requires_grad=True)
    targets = torch.randint(args.vocab, (args.tokens,))

    def naive(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return head(hidden).float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)

    def chunked(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return chunked_logprobs(hidden, head, targets, 1.0, args.chunk_mib << 20, args.vocab)[0]

    run = {"naive": naive, "chunked": chunked}[args.variant]
    run(hidden[:1], targets[:1]).sum().backward()  # Loads kernels, and makes the gradients' memory part of the start.
    start_bytes, start_s = _peak_bytes(), time.perf_counter()
    logprobs = run(hidden, targets)
    logprobs.sum().backward()
    time_s = time.perf_counter() - start_s
    return {"peak_bytes": _peak_bytes() - start_bytes, "time_s": time_s, "sum": float(logprobs.detach().sum())}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mib(num_bytes: float) -> str:
    return f"{num_bytes / 2**20:,.0f} MiB"


if __name__ == "__main__":
    main()
