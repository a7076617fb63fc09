"""How jobs end: one line and a code for errors that people can mend, a traceback for the others."""

from typing import NoReturn

import pytest

from cellmill.ending import BROKE_OFF, INTERRUPTED, SOME_FAILED, UNUSABLE, exit_code

ERRORS: dict[type[Exception], int] = {UnicodeError: BROKE_OFF, ValueError: UNUSABLE}


def _raising(error: BaseException) -> NoReturn:
    raise error


def test_work_that_ends_gives_its_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: SOME_FAILED, prog="job", errors=ERRORS) == SOME_FAILED
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("no such slide"), UNUSABLE),
        (UnicodeError("no such slide"), BROKE_OFF),
        (KeyboardInterrupt(), INTERRUPTED),
    ],
)
def test_errors_are_told_in_one_line(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: _raising(error), prog="job", errors=ERRORS, stopped="no such slide") == code
    assert capsys.readouterr().err == "job: no such slide\n"


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(KeyError):
        exit_code(lambda: _raising(KeyError("x")), prog="job", errors=ERRORS)
