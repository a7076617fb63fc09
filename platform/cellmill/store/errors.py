"""What can go wrong with a cell set, as exceptions that say what, where and what next.

StoreError
|-- OutputError             storage refused a write or a read: full disk, no permission, bucket unreachable
|-- UnsafeNameError         a slide id or key that must not become part of a path
|-- CellSetMismatchError    the output belongs to another model or configuration
|-- SlideChangedError       a done slide's file is not the one it was made from
|-- SlideForgottenError     the slide was removed on request
|-- SlideClaimedError       another driver is working on the slide
|-- ClaimLostError          this driver's claim was taken over
+-- FieldsToRedoError       a commit found fields that must be done (again)
    |-- MissingFieldsError  no part of them yet
    +-- SeamError           their masks and the table contradict each other; their parts are gone now
"""

__all__ = [
    "CellSetMismatchError",
    "ClaimLostError",
    "FieldsToRedoError",
    "MissingFieldsError",
    "OutputError",
    "SeamError",
    "SlideChangedError",
    "SlideClaimedError",
    "SlideForgottenError",
    "StoreError",
    "UnsafeNameError",
]


class StoreError(Exception):
    """Base of everything the store raises on purpose."""


class OutputError(StoreError):
    """Storage refused: the message says what, where and what to do next."""


class UnsafeNameError(StoreError, ValueError):
    """A name that could leave the cell set's root or break its layout."""


class CellSetMismatchError(StoreError):
    """The output holds a cell set of another identity; the message lists each differing key with both values."""


class SlideChangedError(StoreError):
    """The slide is done, and its file has changed since."""


class SlideForgottenError(StoreError):
    """The slide was removed on request and stays removed."""


class SlideClaimedError(StoreError):
    """Another live driver holds the slide."""


class ClaimLostError(StoreError):
    """The claim on a slide passed to another driver, because this one's heartbeat stopped for too long."""


class FieldsToRedoError(StoreError):
    """The slide cannot be committed before `fields` are done."""

    def __init__(self, message: str, fields: tuple[str, ...] = ()) -> None:
        # Both go to args, so that the exception survives pickling between Ray workers.
        super().__init__(message, fields)
        self.fields = fields
        """Names of the fields (`FieldSpec.name`) to do."""

    def __str__(self) -> str:
        return str(self.args[0])


class MissingFieldsError(FieldsToRedoError):
    """Planned fields have no part."""


class SeamError(FieldsToRedoError):
    """Masks and table of these fields contradict each other; their parts were removed."""
