"""Workers act under their driver's claims.

Claims belong to the driver, which keeps their heartbeat. A worker that starts or commits a slide only has to make sure
that the latest claim on it is its own driver's.
"""

import json

from cellmill.store.claims import Owner
from cellmill.store.errors import ClaimLostError
from cellmill.store.layout import claims_prefix
from cellmill.store.objects import ObjectStore

__all__ = ["check_driver_claim"]


def check_driver_claim(store: ObjectStore, slide_id: str, *, driver: Owner) -> None:
    """Make sure the driver still holds the slide; call before what must not be done twice at once.

    Raises:
        ClaimLostError: when it does not.
    """
    prefix = claims_prefix(slide_id)
    names = store.list_names(prefix)
    found = store.get_many([f"{prefix}/{names[-1]}"]) if names else {}
    holders = [Owner(**json.loads(data)) for data in found.values()]
    if not any(holder.is_same_process(driver) and not holder.released for holder in holders):
        raise ClaimLostError(
            f"The driver of this run no longer holds slide {slide_id} on {store.url}: another took it over. "
            "Leave it to that driver."
        )
