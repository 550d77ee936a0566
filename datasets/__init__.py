"""Data sets: where each one is from, under which licence, and where it lies on this machine.

A data set is a *card* (a TOML file in ``cards/``): title, licence, citation, pitfalls, and for every
file its name, size, SHA-256 and addresses. :func:`path` turns a card into a file on disk whose checksum
has been verified, and downloads it once if need be. Nothing here parses a data set (the wings do), and
nothing here imports the rest of ``sci``.

Two environment variables: ``SCI_DATA`` names a folder that holds data sets already (it is searched three
levels deep), ``SCI_CACHE`` names the folder for downloads (default: the cache folder of the platform).

Example:
    >>> from sci import datasets
    >>> "qm9" in datasets.available()
    True
    >>> datasets.card("qm9").title
    'QM9: 133,885 small organic molecules'
    >>> datasets.path("qm9").name
    'qm9.csv.gz'
"""

from sci.datasets.catalogue import Card, File, Form, available, card, read_card
from sci.datasets.locate import FileDamaged, cache_folder, path

__all__ = [
    "Card",
    "File",
    "FileDamaged",
    "Form",
    "available",
    "cache_folder",
    "card",
    "path",
    "read_card",
]
