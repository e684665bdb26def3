"""The explorer: a local web app that shows a database, its concepts, patches and errors, and exports chosen rows."""

from ccassets.pages.explorer.explorer_server import serve_explorer

__all__ = ["serve_explorer"]
