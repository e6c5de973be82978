"""The inside of a running model: capture, patch and name what flows through it."""

from zeitgeist.activations.capture import Activations, capture, patch
from zeitgeist.activations.layouts import Layout, layout_of
from zeitgeist.activations.sites import SITES, Site, resolve_site

__all__ = [
    "SITES",
    "Activations",
    "Layout",
    "Site",
    "capture",
    "layout_of",
    "patch",
    "resolve_site",
]
