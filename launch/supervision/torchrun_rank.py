"""What torchrun runs for each rank: bound to its parent first, before the seconds that importing torch takes."""

from __future__ import annotations

from .parent import die_with_parent, given_parent


def main() -> None:
    die_with_parent(given_parent())
    from .. import worker

    worker.main()


if __name__ == "__main__":
    main()
