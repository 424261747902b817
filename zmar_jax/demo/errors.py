"""What goes wrong because of what a visitor asks for."""


class DemoError(ValueError):
    """One line for the visitor; `status` is what HTTP calls it."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status: int = status


def gone(what: str) -> DemoError:
    """Of a picture or a job that the server has forgotten, as it keeps only the newest."""
    return DemoError(f"this {what} is no longer kept here; drop the picture again", 404)
