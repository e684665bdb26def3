"""The functions of the original scripts and notebooks under their names and arguments, without their faults.

They build a growing file step by step, chunked and legal in the format, which `finalize` publishes. `docs/h5.md` lists
the changes. A study and its build (`ccassets build`) need none of them.
"""

from lazy_loader import attach_stub

# The names stand once, in the stub beside this file, and are imported when somebody asks for one.
__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
