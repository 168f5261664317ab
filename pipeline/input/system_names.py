"""Folders and files that systems and programs make beside photos: thumbnails, bins, caches, snapshots, backups.

Names are compared without regard to case. Names with a dot in front are hidden anyway, so they are not here.
"""

from __future__ import annotations

import fnmatch
import re

_NAMES = frozenset({
    # NAS systems: Synology, QNAP, Buffalo, NetApp, and Apple's protocol on any
    "@eadir", "@tmp", "@sharebin", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@__thumb", "@transcode",
    "trashbox", "~snapshot", "network trash folder", "thevolumesettingsfolder", "temporary items",
    # Windows
    "$recycle.bin", "recycler", "recycled", "system volume information", "ehthumbs.db",
    "ehthumbs_vista.db", "desktop.ini", "albumartsmall.jpg", "appdata", "msocache", "config.msi", "$windows.~bt",
    "$windows.~ws", "$winreagent", "$sysreset", "$getcurrent", "$extend",
    # macOS, and what it leaves in ZIPs and on FAT disks
    "__macosx", "icon\r", "backups.backupdb", "resource.frk",
    # Linux, Android, cameras
    "lost+found", "lost.dir", "thmbnl",
    # Nextcloud, ownCloud, Piwigo, FrontPage, Plex
    "files_trashbin", "files_versions", "files_encryption", "pwg_representative", "_vti_cnf", "_vti_pvt",
    "plex media server",
    # ACDSee and PaintShop Pro: the originals of edited photos
    "[originals]", "corel auto-preserve",
    # Hadoop and Spark
    "_success", "_temporary", "_delta_log", "_spark_metadata",
})  # fmt: skip

_PATTERNS = (
    "*@synoeastream", "*@synoresource", "@syno*",      # Synology
    "thumbs.db*",                                # Windows; beside it lies Thumbs.db:encryptable
    "@gmt-*",                                    # a snapshot that Samba shows
    "albumart_{*", "found.[0-9][0-9][0-9]",      # Windows
    ":2e*",                                      # netatalk's way to write a dot in front
    "*.sparsebundle", "*.backupbundle",          # macOS: disk images in pieces without an extension
    "appdata_oc*",                               # Nextcloud
    "*.lrcat-data", "*.lrdata",                  # Lightroom
    "*.*_original", "*.*_exiftool_tmp",          # exiftool
    "*~",                                        # editors of text and of pixels
    "*_$folder$",                                # Hadoop's markers in buckets
)
_LIKE_A_PATTERN = re.compile("|".join(map(fnmatch.translate, _PATTERNS)))
_ORIGINALS_IN_LRDATA = "mobile downloads.lrdata"     # what a phone has sent: no copies

# Folders by their parent's name and their own.
_PAIRS = frozenset({
    ("captureone", "cache"), ("captureone", "settings"), ("photo booth library", "thumbnails"), ("library", "caches"),
    ("android", "data"), ("android", "obb"), ("itunes", "album artwork"),
    ("_data", "i"),      # Piwigo
})  # fmt: skip

# Libraries of Photos, iPhoto, Aperture and Capture One: all folders but these hold copies.
_LIBRARY = re.compile(r".+\.(?:photoslibrary|photolibrary|aplibrary|migrated\w+library|cocatalog)|iphoto library")
_ORIGINALS = frozenset({"originals", "masters"})


def is_system_name(name: str, parent: str = "", *, is_folder: bool = False) -> bool:
    """Whether a part of a path is of this kind. parent: the name of the folder that it is in."""
    name, parent = name.casefold(), parent.casefold()
    if name in _NAMES:
        return True
    if _LIKE_A_PATTERN.match(name):
        return name != _ORIGINALS_IN_LRDATA
    if not is_folder:
        return False
    return (parent, name) in _PAIRS or (bool(_LIBRARY.fullmatch(parent)) and name not in _ORIGINALS)
