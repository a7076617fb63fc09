"""Work on a slide that may end its process; a module of its own, for each process imports it anew."""

import os

from cellmill.slides.errors import SlideError


def ends_its_process(item: str) -> str:
    """The item in capitals; "bad" raises, "killer" is as if the system had killed the process."""
    if item == "killer":
        os._exit(1)
    if item == "bad":
        raise SlideError("It is bad.")
    return item.upper()
