"""`posekd push RUN OWNER/NAME`: puts a checkpoint and its card on the Hugging Face Hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from posekd.cli import command_parser


def main(argv: Sequence[str]) -> int:
    """Uploads, and says where to.

    Raises:
        FileNotFoundError, ValueError: no checkpoint with a card, or a name that is none.
        OSError: the hub refuses, or cannot be reached.
    """
    parser = command_parser("push")
    add = parser.add_argument
    add("model", help="a run's folder, or a .safetensors file with its card")
    add("repository", help="OWNER/NAME; made if it does not exist. `hf auth login` says who you are")
    add("--licence", metavar="ID", help="of these weights, e.g. apache-2.0; mind that of the teacher")
    add("--private", action="store_true", help="a new repository is private")
    add("--endpoint", metavar="URL", help="address of the hub, where it is not the usual one")
    options = parser.parse_args(argv)

    from posekd.deploy.hub import push

    url = push(
        options.model,
        options.repository,
        licence=options.licence,
        private=options.private,
        endpoint=options.endpoint,
    )
    if options.licence is None:
        print("note: no --licence was given, so nobody may know whether to use these weights", file=sys.stderr)
    print(url)
    return 0
