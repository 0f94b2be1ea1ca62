"""`textebm env`."""

from collections.abc import Sequence

from textebm import options
from textebm.commands.terminal import parse


def env(arguments: Sequence[str]) -> int:
    """`textebm env`."""
    parse(options.Env, "env", arguments)
    from importlib.util import find_spec

    import torch

    from textebm import hardware, native
    from textebm.lm_eval import ngram

    for package, number in hardware.versions().items():
        print(f"{package} {number or 'not installed'}")
    threads, gpus = torch.get_num_threads(), torch.cuda.device_count()
    print(f"CPU: {hardware.hardware_class()}, {threads} threads in torch")
    print("GPU: " + (", ".join(torch.cuda.get_device_name(i) for i in range(gpus)) if gpus else "none found"))
    print(f"C kernels: {native.status()}")
    kenlm = find_spec("kenlm") is not None
    print(f"n-gram judge: estimated by {ngram.find_lmplz() or 'the built-in estimator (no lmplz was found)'},")
    print(f"              queried by {'the kenlm module' if kenlm else 'the built-in reader (no kenlm module)'}")
    return 0
