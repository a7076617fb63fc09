"""What can go wrong with a slide, in words a person can act on.

Messages never hold a path or text from a slide's header: both can name a patient, and messages end up in statuses and
logs. Whoever knows the slide's id adds it.

    SlideError
    |-- SlideNotFoundError      no such file
    |-- UnsupportedSlideError   no reader understands it, or it is no RGB image
    |-- SlideTooLargeError      its header claims sizes no slide has
    |-- UnusableScaleError      no um/px, or an absurd one
    |-- SlideReadError          one region cannot be decoded; others may
    |-- RegionFileError         the region file cannot be used
    `-- ReaderProcessError      the reader's child process ended badly
        |-- ReaderCrashed
        |-- ReaderTimeout
        `-- ReaderOutOfMemory
"""

__all__ = [
    "ReaderCrashed",
    "ReaderOutOfMemory",
    "ReaderProcessError",
    "ReaderTimeout",
    "RegionFileError",
    "SlideError",
    "SlideNotFoundError",
    "SlideReadError",
    "SlideTooLargeError",
    "UnsupportedSlideError",
    "UnusableScaleError",
    "slide_error_from_name",
]


class SlideError(Exception):
    """Something is wrong with a slide; `str(error)` says what and what to do, without naming the file."""


class SlideNotFoundError(SlideError):
    """The slide's file is not there, or may not be read."""


class UnsupportedSlideError(SlideError):
    """No reader understands the file, or what it holds is no RGB slide."""


class SlideTooLargeError(SlideError):
    """The header claims sizes that no slide has: a damaged file, or one made to exhaust memory."""


class UnusableScaleError(SlideError):
    """The slide states no um/px, or one that cannot be true."""


class SlideReadError(SlideError):
    """One region of the slide cannot be decoded."""


class RegionFileError(SlideError):
    """A region file is missing, not GeoJSON, or holds a feature that is no usable polygon."""


class ReaderProcessError(SlideError):
    """The process that reads the slide ended badly; the next call starts a fresh one."""


class ReaderCrashed(ReaderProcessError):  # noqa: N818 -- reads as what happened
    """The reader's process died (a segmentation fault in a decoder, an abort, a kill)."""


class ReaderTimeout(ReaderProcessError):  # noqa: N818
    """The reader gave no answer in time and was killed."""


class ReaderOutOfMemory(ReaderProcessError):  # noqa: N818
    """The reader's process passed its memory limit and was killed."""


def slide_error_from_name(name: str, message: str) -> SlideError:
    """The error of class `name` with `message`: how errors come back from a reader's process."""
    for kind in (SlideNotFoundError, UnsupportedSlideError, SlideTooLargeError, UnusableScaleError, SlideReadError):
        if kind.__name__ == name:
            return kind(message)
    return SlideError(message)
