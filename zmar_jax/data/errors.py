"""What can be wrong with data."""


class DataError(ValueError):
    """A dataset that cannot be found, read or used; the message names the files and the fix."""
