"""`posekd pull OWNER/NAME [DIR]`: gets a checkpoint from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence

from posekd.cli import command_parser


def main(argv: Sequence[str]) -> int:
    """Downloads, and says which network it is and whose licence binds.

    Raises:
        FileExistsError: the folder holds a checkpoint already.
        ValueError: no checkpoint of posekd.
        OSError: the hub refuses, or cannot be reached.
    """
    parser = command_parser("pull")
    add = parser.add_argument
    add("repository", help="OWNER/NAME")
    add("folder", nargs="?", help="where to write (default: NAME)")
    add("--revision", metavar="NAME", help="branch, tag or commit (default: the newest)")
    add("--endpoint", metavar="URL", help="address of the hub, where it is not the usual one")
    options = parser.parse_args(argv)

    from posekd.deploy.hub import pull
    from posekd.models.weights import read_card

    folder = options.folder or options.repository.split("/")[-1]
    weights = pull(options.repository, folder, revision=options.revision, endpoint=options.endpoint)
    card = read_card(weights) or {}
    teacher = card.get("teacher")
    taught = f"; its teacher's licence: {teacher.get('licence', 'unknown')}" if isinstance(teacher, dict) else ""
    print(f"{weights}: {card['model']['name']}, licence: {card.get('licence', 'not stated')}{taught}")
    return 0
