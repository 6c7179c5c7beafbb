"""What the tests of the application share with these."""

from ..web.conftest import database_url, open_site

__all__ = ["database_url", "open_site"]
