"""What the tests of the application share with these."""

from ..web.conftest import open_site

__all__ = ["open_site"]
