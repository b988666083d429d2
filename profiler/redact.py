"""Keep folders of the machine's user out of texts that go into a dataset."""

from __future__ import annotations

from pathlib import Path


def redact(text: str | None, *, home: Path | None = None, here: Path | None = None) -> str | None:
    """Return `text`, an error of some process, with the current and the home folder shortened.

    >>> redact("no /home/ann/run/x.py", home=Path("/home/ann"), here=Path("/home/ann/run"))
    'no ./x.py'

    Args:
        text: What an exception or the last line of standard error said.
        home: By default the user's.
        here: By default the current folder.
    """
    if text is None:
        return None
    for folder, short in ((here or Path.cwd(), "."), (home or Path.home(), "~")):
        if len(folder.parts) > 1:  # "/" stands in every path
            text = text.replace(f"{folder}/", f"{short}/")
    return text
