"""What is installed: nothing that is known to let somebody in. The list is by hand; `make audit` checks everything."""

from __future__ import annotations

import re
from importlib import metadata

from packaging.version import Version

FIXED = {
    "filelock": ("3.20.1", "CVE-2025-68146: a lock file that follows a link"),
    "h11": ("0.16.0", "CVE-2025-43859: requests smuggled past the webserver"),
    "jinja2": ("3.1.6", "CVE-2025-27516: out of the sandbox by an attribute filter"),
    "pillow": ("12.2.0", "CVE-2026-42309: a heap overflow by nested coordinates"),
    "pyarrow": ("14.0.1", "CVE-2023-47248: code run by reading a file"),
    "pyyaml": ("5.4", "CVE-2020-14343: code run by loading a file"),
    "requests": ("2.32.4", "CVE-2024-47081: passwords of .netrc sent elsewhere"),
    "scikit-learn": ("1.5.0", "CVE-2024-5206: training data kept where it is not expected"),
    "setuptools": ("78.1.1", "CVE-2025-47273: a package written outside its folder"),
    "starlette": ("0.49.1", "CVE-2025-62727: a request that costs the webserver quadratic time"),
    "torch": ("2.6.0", "CVE-2025-32434: code run by loading weights"),
    "urllib3": ("2.6.0", "CVE-2025-66418: a response that inflates without end"),
}
"""Of what we read with, download with or serve with: the first release without the hole that is named beside it."""


def installed(package: str = "ccassets", versions: dict[str, str] | None = None) -> dict[str, str]:
    """Versions of all that a package needs, and of what that needs."""
    versions = {} if versions is None else versions
    name = re.sub(r"[-_.]+", "-", package).lower()
    if name not in versions:
        try:
            distribution = metadata.distribution(package)
        except metadata.PackageNotFoundError:
            return versions  # For another platform or Python.
        versions[name] = distribution.version
        for requirement in distribution.requires or ():
            if "extra ==" not in requirement:
                installed(re.match(r"[\w.-]+", requirement).group(), versions)
    return versions


def test_nothing_with_a_known_hole_is_installed() -> None:
    versions = installed()
    assert {"torch", "pillow", "starlette", "urllib3"} <= set(versions)
    holes = [
        f"{name} {versions[name]} < {fixed}: {what}"
        for name, (fixed, what) in FIXED.items()
        if name in versions and Version(versions[name]) < Version(fixed)
    ]
    assert holes == []
