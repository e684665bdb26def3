"""The explorer: a local web app to look at a database, its concepts, patches and errors, and to take rows along."""

from ccassets.pages.explorer.explorer_server import serve_explorer

__all__ = ["serve_explorer"]
