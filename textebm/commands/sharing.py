"""`textebm share`: a trained model for others."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from textebm import options
from textebm.commands.terminal import parse, require_file, say
from textebm.errors import UsageError


def share(arguments: Sequence[str]) -> int:
    """`textebm share`."""
    chosen = parse(options.Share, "share", arguments)
    if chosen.output is None and chosen.push is None:
        raise UsageError("share wants --output, a folder to write, or --push, OWNER/NAME on the Hugging Face Hub")
    for name in chosen.results:
        require_file("--results", name)
    from textebm import checkpoint, sharing
    from textebm.interface import LatentEBM
    from textebm.model_card import CardOptions

    if chosen.push is not None:  # before anything is written
        sharing.require_repository(chosen.push)
        sharing.require_huggingface_hub("--push")
    card = CardOptions(
        license=chosen.license,
        language=chosen.language,
        results=tuple(map(Path, chosen.results)),
        samples=chosen.samples,
        seed=chosen.seed,
    )
    folder, described = checkpoint.find_model(chosen.run)
    say(f"model: {described}")
    if chosen.license is None:
        say("no --license: the card says that none was chosen, and others may not know what they are allowed to do")
    model = LatentEBM.from_pretrained(folder, device="cpu")
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "model" if chosen.output is None else Path(chosen.output)
        model.save_pretrained(output, repo_id=chosen.name or chosen.push, card=card)
        if chosen.output is not None:
            print(output)
        if chosen.push is not None:
            private = chosen.private or None
            print(
                sharing.push(output, chosen.push, commit_message=chosen.message, private=private, branch=chosen.branch)
            )
    return 0
