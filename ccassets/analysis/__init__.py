"""Analyses of a feature database: scores, classifiers on concepts, search, label errors, and how good they are."""

from lazy_loader import attach_stub

# The names stand once, in the stub beside this file, and are imported when somebody asks for one.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
