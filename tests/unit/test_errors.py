"""An error's way out stands at the end of its message, also when it comes from another process."""

import pickle

from whence.errors import DataError, WhenceError


def test_the_hint_ends_the_message_and_travels_with_the_error() -> None:
    error: WhenceError = pickle.loads(pickle.dumps(DataError("train.csv has no rows", hint="give another file")))
    assert str(error) == "train.csv has no rows; give another file"
    assert error.hint == "give another file"
    assert str(DataError("train.csv has no rows")) == "train.csv has no rows"
